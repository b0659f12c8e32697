"""cosFormer, arXiv:2202.08791."""

import numpy as np

from . import Site, restates, swap


def cosformer(site: Site, length: int) -> np.ndarray:
    """relu(q) . relu(k) cos(pi (i - j) / 2M), with positions counted from 1 and none beyond M."""
    place = np.minimum(np.arange(1, site.q.shape[2] + 1), length)
    weights = np.maximum(site.q, 0) @ swap(np.maximum(site.k, 0)) * site.seen
    weights = weights * np.cos(np.pi / 2 / length * (place[:, None] - place))
    return weights @ site.v / np.maximum(weights.sum(-1, keepdims=True), 1e-6)


restates("cosformer(length=64)", options={"length": 64})(cosformer)
restates("cosformer(length=20)", options={"length": 20}, lengths=(33, 19))(cosformer)
