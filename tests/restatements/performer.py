"""Performers, arXiv:2009.14794."""

import numpy as np

from . import Site, restates, swap


def performer(site: Site, kernel: str = "softmax") -> np.ndarray:
    """Dense weights of the features; keys share one greatest exponent, each query has its own."""
    w = site.weights["directions"]
    m, x, y = w.shape[1], site.q * site.scale**0.5, site.k * site.scale**0.5
    if kernel == "relu":
        weights = (np.maximum(x @ w, 0) + 1e-3) @ swap(np.maximum(y @ w, 0) + 1e-3) / m
    else:
        a, b = (z @ w - (z**2).sum(-1, keepdims=True) / 2 for z in (x, y))
        a = a - a.max(-1, keepdims=True)
        if not site.causal:
            b = b - np.where(site.keep[:, None, :, None], b, -np.inf).max((2, 3), keepdims=True)
        weights = (np.exp(a) + 1e-6) @ swap(np.exp(b) + 1e-6) / m
    weights = weights * site.seen
    return weights @ site.v / (weights.sum(-1, keepdims=True) + 1e-12)


restates("performer")(performer)
restates("performer(features=9,gaussian=false)")(performer)
restates("performer(kernel=relu)", options={"kernel": "relu"})(performer)
