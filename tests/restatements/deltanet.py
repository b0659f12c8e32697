"""DeltaNet, arXiv:2406.06484; Gated DeltaNet, arXiv:2412.06464; Kimi Delta Attention, arXiv:2510.26692."""

import numpy as np

from . import Site, restates
from .steps import apart, grouped_conv, recurrence, rms, sigmoid, silu, softplus


def unit(x: np.ndarray) -> np.ndarray:
    """Rows over their length, eps 1e-6 under the root."""
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def delta(site: Site, factor: np.ndarray, act: bool = True, most: float = 1.0) -> np.ndarray:
    """Erase by the decayed state, then write; normalised by head."""
    w, h, seen = site.weights, site.q.shape[1], site.keep[:, None, :, None]
    named = (("conv_q", site.q), ("conv_k", site.k), ("conv_v", site.v))
    q, k, v = (grouped_conv(x, w[name], site.keep) for name, x in named)
    if act:
        q, k, v = silu(q), silu(k), silu(v)
    beta = most * apart(sigmoid(site.tokens @ w["beta"].T + w["beta_bias"]), h)[..., 0]
    o = site.scale * recurrence(unit(q), unit(k) * seen, v * seen, factor, site.keep, beta)
    return rms(o) * w["norm"]


def gate(site: Site) -> np.ndarray:
    """The swish gate."""
    return apart(silu(site.tokens @ site.weights["gate"].T + site.weights["gate_bias"]), site.q.shape[1])


def deltanet(site: Site, act: bool = True, most: float = 1.0) -> np.ndarray:
    """Nothing is forgotten but what is overwritten."""
    return delta(site, np.ones((*site.q.shape[:3], 1)), act, most)


restates("deltanet")(deltanet)
restates("deltanet(conv=2,act=false)", options={"act": False}, lengths=(1, 9))(deltanet)
restates("deltanet(negative=true)", options={"most": 2.0}, lengths=(9,))(deltanet)


@restates("gated_deltanet")
def gated_deltanet(site: Site) -> np.ndarray:
    """One decay for each head."""
    w = site.weights
    step = softplus(site.tokens @ w["decay"].T + w["dt_bias"])
    return delta(site, apart(np.exp(-np.exp(w["A_log"]) * step), site.q.shape[1])) * gate(site)


@restates("kda")
def kda(site: Site) -> np.ndarray:
    """One decay for each key feature."""
    w = site.weights
    step = softplus(site.tokens @ w["decay_down"].T @ w["decay_up"].T + w["dt_bias"])
    return delta(site, apart(np.exp(-np.exp(w["A_log"]) * step), site.q.shape[1])) * gate(site)
