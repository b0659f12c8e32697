"""Mixture of memories, arXiv:2502.13685."""

import numpy as np

from . import Site, restates
from .deltanet import unit
from .steps import apart, grouped_conv, recurrence, rms, sigmoid, silu, softplus


@restates("mom(memories=3)")
def mom(site: Site) -> np.ndarray:
    """Each memory runs over the tokens routed to it and over no other."""
    h, w, x = site.q.shape[1], site.weights, site.tokens
    named = (("conv_q", site.q), ("conv_k", site.k), ("conv_v", site.v))
    q, k, v = (silu(grouped_conv(y, w[name], site.keep)) for name, y in named)
    logits = x @ w["router"].T
    best = np.argsort(-logits, axis=-1)[..., :2]
    chosen = (best[..., None] == np.arange(3)).any(2) & site.keep[..., None]
    p = np.exp(logits) * chosen
    shared = site.keep[..., None]
    weights = np.concatenate([p / np.maximum(p.sum(-1, keepdims=True), 1e-30), shared], -1)
    chosen = np.concatenate([chosen, shared], -1)
    total = np.zeros_like(site.v)
    for m in range(4):
        part = slice(m * h, (m + 1) * h)
        beta = apart(sigmoid(x @ w["beta"][part].T + w["beta_bias"][part]), h)[..., 0]
        step = softplus(x @ w["decay"][part].T + w["dt_bias"])
        factor = apart(np.exp(-np.exp(w["A_log"]) * step), h)
        o = site.scale * recurrence(unit(q), unit(k), v, factor, chosen[..., m], beta)
        total += weights[:, None, :, m, None] * o
    return rms(total) * w["norm"] * apart(silu(x @ w["gate"].T + w["gate_bias"]), h)
