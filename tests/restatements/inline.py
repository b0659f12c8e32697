"""InLine attention with its residual, arXiv:2412.06590."""

import math

import numpy as np

from . import Site, restates, swap
from .sla import convolved


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function of x."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def inline(site: Site, rectify: bool = False) -> np.ndarray:
    """Dense weights around 1 / N; a kernel for each sample, head and channel."""
    q, k = (np.maximum(x, 0) if rectify else x for x in (site.q, site.k))
    b, h, n, _ = q.shape
    scores = site.scale * q @ swap(k)
    out = ((scores - scores.mean(-1, keepdims=True)) / n + 1 / n) @ site.v
    w, each = site.weights, site.tokens.shape[2] // h
    for i, j in np.ndindex(b, h):
        x = site.tokens[i, :, j * each : (j + 1) * each].mean(0)
        x = gelu(x @ w["hidden"][j] + w["hidden_bias"][j, 0])
        kernel = (x @ w["kernel"][j] + w["kernel_bias"][j, 0]).reshape(-1, 3, 3)
        out[i, j] += convolved(site.v[i, j], kernel, site.grid, site.before)
    return out


restates("inline", sizes={"c": 12})(inline)
restates("inline(kernel=relu)", sizes={"c": 8}, options={"rectify": True}, grids=((3, 4),))(inline)
