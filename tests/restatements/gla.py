"""Gated linear attention, arXiv:2312.06635."""

import numpy as np

from . import Site, restates
from .steps import apart, merged, recurrence, rms, sigmoid, silu


def gla(site: Site, source: str = "tokens", each: int = 2) -> np.ndarray:
    """Token by token, a factor of the state for each key feature."""
    h, w = site.q.shape[1], site.weights
    x = site.tokens if source == "tokens" else merged(site.k[:, ::each])
    factor = sigmoid(x @ w["decay_down"].T @ w["decay_up"].T + w["decay_bias"]) ** (1 / 16)
    o = site.scale * recurrence(site.q, site.k, site.v, apart(factor, h), site.keep)
    return rms(o) * w["norm"] * apart(silu(site.tokens @ w["gate"].T + w["gate_bias"]), h)


restates("gla")(gla)
restates("gla(source=keys)", options={"source": "keys"}, lengths=(1, 9))(gla)
