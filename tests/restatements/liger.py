"""Liger, arXiv:2503.01496."""

import numpy as np

from . import Site, restates, swap
from .steps import recurrence, sigmoid


@restates("liger(size=4)")
def liger(site: Site) -> np.ndarray:
    """Half a softmax of the last four keys, half gated linear attention."""
    place = np.arange(site.q.shape[2])
    near = site.seen & (place[:, None] - place < 4)
    weights = np.exp(site.scale * site.q @ swap(site.k)) * near
    total = weights.sum(-1, keepdims=True)
    window = np.where(total > 0, weights / np.where(total > 0, total, 1), 0) @ site.v
    q, k = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (site.q, site.k))
    return 0.5 * window + 0.5 * recurrence(q, k, site.v, sigmoid(site.k) ** (1 / 16), site.keep)
