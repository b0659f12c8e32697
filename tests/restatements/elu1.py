"""Transformers are RNNs, arXiv:2006.16236."""

import numpy as np

from . import Site, restates, swap


def phi(x: np.ndarray) -> np.ndarray:
    """elu(x) + 1."""
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


@restates("elu1")
def elu1(site: Site) -> np.ndarray:
    """Weights phi(q) . phi(k), normalised by row."""
    weights = phi(site.q) @ swap(phi(site.k)) * site.seen
    return weights @ site.v / (weights.sum(-1, keepdims=True) + 1e-6)
