"""Hedgehog, arXiv:2402.04347."""

import numpy as np

from . import Site, restates, swap


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@restates("hedgehog")
def hedgehog(site: Site) -> np.ndarray:
    """One softmax over 2 (x W + b) and its negative."""
    h = site.q.shape[1]

    def phi(x, name):
        w, b = (site.weights[n].repeat(h // len(site.weights[n]), 0) for n in (name, f"{name}_bias"))
        y = 2 * (x @ w + b)
        return softmax(np.concatenate([y, -y], -1))

    weights = phi(site.q, "query") @ swap(phi(site.k, "key")) * site.seen
    return weights @ site.v / (weights.sum(-1, keepdims=True) + 1e-12)
