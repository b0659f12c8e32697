"""Softmax to first order, arXiv:2412.06590 with the identity map."""

import numpy as np

from . import Site, restates, swap


@restates("taylor1")
def taylor1(site: Site) -> np.ndarray:
    """w_ij = (1 + s q_i . (k_j - mean k)) / N over the keys row i sees."""
    seen, scores = site.seen, site.scale * site.q @ swap(site.k)
    count = np.maximum(seen.sum(-1, keepdims=True), 1)
    mean = (scores * seen).sum(-1, keepdims=True) / count
    return ((1 + scores - mean) * seen / count) @ site.v
