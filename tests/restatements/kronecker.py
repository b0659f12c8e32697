"""Attention with bounded entries, arXiv:2302.13214, and to pairs of tokens, arXiv:2310.04064."""

import math

import numpy as np

from . import Site, restates, swap


def taylor(s: np.ndarray, order: int) -> np.ndarray:
    """exp to an order."""
    return sum(s**m / math.factorial(m) for m in range(order + 1))


def within(x: np.ndarray, limit: float) -> np.ndarray:
    """Entries held within +-limit."""
    return np.clip(x, -limit, limit)


def polynomial(site: Site, limit: float, order: int = 2) -> np.ndarray:
    """Dense weights of clipped entries."""
    weights = taylor(site.scale * within(site.q, limit) @ swap(within(site.k, limit)), order) * site.seen
    return weights @ site.v / (weights.sum(-1, keepdims=True) + 1e-12)


restates("polynomial(limit=0.6)", options={"limit": 0.6})(polynomial)
restates("polynomial(order=4,limit=0.9)", options={"limit": 0.9, "order": 4})(polynomial)


@restates("polynomial", lengths=(9,))
def largest(site: Site) -> np.ndarray:
    """Clipped where the polynomial of the lowest score, -x, is off by a tenth: by Newton."""
    x = 1.0
    for _ in range(60):
        x -= ((1 - x + x * x / 2) * math.exp(x) - 1.1) / (x * x / 2 * math.exp(x))
    return polynomial(site, math.sqrt(x / (site.scale * site.q.shape[3])))


@restates("tensor_attention(limit=0.6)", lengths=(1, 9, 14))
def tensor_attention(site: Site) -> np.ndarray:
    """Every pair of keys."""
    h, weights = site.q.shape[1], site.weights
    second = {}
    for name, x in (("second_key", site.k), ("second_value", site.v)):
        w, bias = (weights[n].repeat(h // len(weights[n]), 0) for n in (name, f"{name}_bias"))
        second[name] = x @ w + bias
    q, k, k2 = within(site.q, 0.6), within(site.k, 0.6), within(second["second_key"], 1.0)
    a = taylor(site.scale * np.einsum("bhic,bhjc,bhlc->bhijl", q, k, k2), 2)
    a = a * site.keep[:, None, None, :, None] * site.keep[:, None, None, None, :]
    value = np.einsum("bhijl,bhje,bhle->bhie", a, site.v, second["second_value"])
    return value / (a.sum((3, 4))[..., None] + 1e-12)
