"""MLGRU, arXiv:2406.02528."""

import numpy as np

from . import Site, restates
from .steps import apart, merged, rms, sigmoid, silu


@restates("mlgru", sizes={"e": 4})
def mlgru(site: Site) -> np.ndarray:
    """Token by token; at a padded one nothing changes."""
    q, k, v = (merged(x) for x in (site.q, site.k, site.v))
    bound = sigmoid(site.weights["bound"]) if site.index else 0.0
    state, out = np.zeros_like(q[:, 0]), np.zeros_like(q)
    for t in range(q.shape[1]):
        f = bound + (1 - bound) * sigmoid(q[:, t])
        state = np.where(site.keep[:, t, None], f * state + (1 - f) * silu(v[:, t]), state)
        out[:, t] = silu(state)
    return apart(rms(k) * site.weights["norm"] * out, site.q.shape[1])
