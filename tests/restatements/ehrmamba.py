"""EHRMamba, arXiv:2405.14567: the Mamba block, arXiv:2312.00752."""

import numpy as np

from . import Site, restates
from .steps import apart, conv, silu, softplus


def selective(x, weights, keep, state=16, rank=1, name=""):
    """The selective scan of x [b,n,c], one channel and one token after another."""
    w = {key: weights[name + key] for key in ("read", "dt", "dt_bias", "A_log", "D")}
    parts, out = x @ w["read"].T, np.zeros_like(x)
    dt = softplus(parts[..., :rank] @ w["dt"].T + w["dt_bias"])
    B, C = parts[..., rank : rank + state], parts[..., rank + state :]
    for i in range(len(x)):
        h = np.zeros((x.shape[2], state))
        for t in range(x.shape[1]):
            if keep[i, t]:
                step = dt[i, t][:, None]
                h = np.exp(-step * np.exp(w["A_log"])) * h + step * B[i, t] * x[i, t][:, None]
            out[i, t] = h @ C[i, t] + w["D"] * x[i, t]
    return out


@restates("ehrmamba(state=4)", sizes={"c": 17})
def ehrmamba(site: Site) -> np.ndarray:
    """In, convolution, scan, gate, out."""
    w = site.weights
    u, z = np.split(site.tokens @ w["in"].T, 2, axis=-1)
    u = silu(conv(u[:, None], w["conv"], site.keep)[:, 0])
    y = selective(u, w, site.keep, state=4, rank=2) * silu(z)
    return apart(y @ w["out"].T, site.q.shape[1])
