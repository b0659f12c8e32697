"""Based, arXiv:2402.18668; its polynomial as the tail of a window."""

import numpy as np

from . import Site, restates, swap


def polynomial(s: np.ndarray) -> np.ndarray:
    """exp to second order."""
    return 1 + s + s**2 / 2


def based(site: Site) -> np.ndarray:
    """The polynomial of the scores of queries and keys mapped down."""
    h = site.q.shape[1]
    q, k = (
        site.q @ site.weights["query"],
        site.k @ site.weights["key"].repeat(h // len(site.weights["key"]), 0),
    )
    weights = polynomial(site.scale * q @ swap(k)) * site.seen
    return weights @ site.v / (weights.sum(-1, keepdims=True) + 1e-12)


restates("based")(based)
restates("based(features=2)")(based)


def taylor2(site: Site, size: int = 8, centred: bool = True) -> np.ndarray:
    """Exponentials in the own and the neighbouring blocks, their polynomial elsewhere, one sum."""
    k, keep, n = site.k, site.keep[:, None, :, None], site.k.shape[2]
    if centred and not site.causal:
        k = k - (k * keep).sum(2, keepdims=True) / np.maximum(keep.sum(2, keepdims=True), 1)
    block = np.arange(n) // size
    scores = site.scale * site.q @ swap(k)
    weights = np.where(np.abs(block[:, None] - block) <= 1, np.exp(scores), polynomial(scores)) * site.seen
    total = weights.sum(-1, keepdims=True)
    return weights @ site.v / np.where(total > 0, total, 1)


restates("taylor2(size=8)")(taylor2)
restates("taylor2(size=4,centred=false)", options={"size": 4, "centred": False})(taylor2)
