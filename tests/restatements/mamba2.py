"""Mamba-2, arXiv:2405.21060, and the discrete one of MOHAWK, arXiv:2408.10189."""

import numpy as np

from . import Site, restates
from .steps import apart, grouped_conv, merged, recurrence, rms, sigmoid, silu, softplus


def mamba2(site: Site, act: bool = True) -> np.ndarray:
    """The state h_t = exp(dt A) h_{t-1} + dt B x^T, one token after another."""
    (_, h, _, _), w, seen = site.q.shape, site.weights, site.keep[:, None, :, None]
    named = (("conv_q", site.scale * site.q), ("conv_k", site.k), ("conv_v", site.v))
    q, k, v = (grouped_conv(x, w[name], site.keep) for name, x in named)
    if act:
        q, k, v = silu(q), silu(k), silu(v)
    k, v = k * seen, v * seen
    dt = apart(softplus(site.tokens @ w["dt"].T + w["dt_bias"]), h)
    factor = np.exp(-dt * np.exp(w["A_log"])[:, None, None])
    y = recurrence(q, k, dt * v, factor, site.keep) + w["D"][:, None, None] * v
    z = silu(site.tokens @ w["gate"].T + w["gate_bias"])
    return apart(rms(merged(y) * z) * w["norm"], h)


restates("mamba2")(mamba2)
restates("mamba2(conv=2,act=false)", options={"act": False}, lengths=(1, 9))(mamba2)


@restates("discrete_mamba2")
def discrete_mamba2(site: Site) -> np.ndarray:
    """A = sigmoid(-a), nothing else changes what is written."""
    h, w = site.q.shape[1], site.weights
    factor = apart(sigmoid(-(site.tokens @ w["decay"].T + w["decay_bias"])), h)
    y = site.scale * recurrence(site.q, site.k, site.v, factor, site.keep)
    y = y + w["D"][:, None, None] * site.v
    return y * apart(silu(site.tokens @ w["gate"].T + w["gate_bias"]), h)
