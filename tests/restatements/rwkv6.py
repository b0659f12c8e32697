"""RWKV-6, arXiv:2404.05892."""

import numpy as np

from . import Site, restates
from .steps import apart, rms, silu


@restates("rwkv6(rank=3)")
def rwkv6(site: Site) -> np.ndarray:
    """Token by token: read the state and the token's own bonus, then decay and write."""
    w, (b, h, n, d), e = site.weights, site.q.shape, site.v.shape[3]
    lora = np.tanh(site.tokens @ w["decay_down"].T) @ w["decay"].T + w["decay_bias"]
    factor, out = apart(np.exp(-np.exp(lora)), h), np.zeros((b, h, n, e))
    for i, j in np.ndindex(b, h):
        S = np.zeros((d, e))
        for t in range(n):
            new = np.outer(site.k[i, j, t], site.v[i, j, t])
            out[i, j, t] = site.scale * site.q[i, j, t] @ (S + w["bonus"][j][:, None] * new)
            if site.keep[i, t]:
                S = factor[i, j, t][:, None] * S + new
    gate = silu(site.tokens @ w["gate"].T + w["gate_bias"])
    return rms(out) * w["norm"] * apart(gate, h)
