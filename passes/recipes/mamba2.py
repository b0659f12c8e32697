"""Mamba-2: a step size of each token and head, which decays the state and writes to it."""

from __future__ import annotations

from ...ir import Value
from ...ir.dims import Dim
from ...ir.ops.activation import as_dtype, silu, wide
from ...ir.ops.elementwise import exp, log
from ...ir.ops.nonlinear import softplus
from ...ir.ops.norm import rms_norm
from ...ir.ops.random import rand
from ...ir.ops.shape import reshape
from .pieces.gates import (
    at_tokens,
    filled,
    flat,
    from_tokens,
    gated,
    half_life_start,
    heads_of,
    repeated,
    short_conv,
    step_start,
)
from .pieces.linear import recurrence
from .recipe import CAUSAL, Mixing, recipe

STARTS = {
    "dt": "0, so that steps do not read the tokens", "dt_bias": "steps log-uniform in 0.001 .. 0.1",
    "A_log": "A uniform in 1 .. 16", "D": "1", "gate": "0", "gate_bias": "1", "norm": "1",
}  # fmt: skip
"""What Mamba-2 learns beside its convolutions."""


def step_and_decay(site: Mixing, x: Value, h: Dim, *, name: str = "") -> tuple[Value, Value]:
    """dt = softplus(W x + bias) and dt A, A = -exp(A_log), [b, h, n] each, 0 at padded tokens."""
    dtype = wide(x).dtype
    dt = softplus(from_tokens(site, x, f"{name}dt", h, bias=step_start(dtype, h)))
    A = exp(site.learn(f"{name}A_log", log(rand(size=(h,), dtype=dtype, key=2) * 15.0 + 1.0)))
    return at_tokens(site, dt), at_tokens(site, -(dt * A))


def skipped(site: Mixing, v: Value, start: float = 1.0) -> Value:
    """D v with D [h], starting at `start`."""
    h = v.shape[1]
    return reshape(site.learn("D", filled(start, v.dtype, h)), shape=(h, 1, 1)) * v


def norm_of_gated(site: Mixing, y: Value, x: Value, *, start: float = 1.0) -> Value:
    """RMS norm over all heads of y silu(W x + b), y [b, h, n, e], times a weight that starts at `start`."""
    _, h, _, e = y.shape
    z = flat(y) * silu(from_tokens(site, x, "gate", h * e, bias=1.0))
    weight = site.learn("norm", filled(start, z.dtype, h * e))
    return heads_of(rms_norm(z, weight, normalized_shape=(h * e,), eps=1e-5), h)


@recipe(
    paper="arXiv:2405.21060", kind="needs training", masks=CAUSAL, needs={"tokens"},
    learns={"conv_q": "the identity", "conv_k": "the identity", "conv_v": "the identity", **STARTS},
)  # fmt: skip
def mamba2(q, k, v, site, *, conv: int = 4, act: bool = True):
    """Mamba-2 with C = scale q, B = k, x = v, one state for each query head.

        S_t = exp(dt_t A) S_(t-1) + dt_t k_t v_t^T,  y_t = S_t^T q_t + D v_t

    dt = softplus(W x + bias), one for each token and query head. q, k and v pass a causal depthwise
    convolution of `conv` tokens and silu if `act`; y silu(W x + b) is normalised over
    all heads. The conversion of a pretrained attention is that of arXiv:2408.15237.
    """
    h = q.shape[1]
    q_, k, v = (
        short_conv(site, wide(x), f"conv_{name}", conv, act=act)
        for x, name in ((wide(q) * site.scale, "q"), (site.kept(k), "k"), (site.kept(v), "v"))
    )
    k, v = site.kept(k), repeated(site.kept(v), h)
    dt, decay = step_and_decay(site, site.tokens, h)
    b, _, n = dt.shape
    written = v * reshape(dt, shape=(b, h, n, 1))
    y = recurrence(site, q_, k, written, decay, causal=True) + skipped(site, v)
    return as_dtype(norm_of_gated(site, y, site.tokens), q.dtype)


@recipe(
    paper="arXiv:2408.10189", kind="needs training", masks=CAUSAL, needs={"tokens"},
    learns={
        "decay": "0, so that decays do not read the tokens", "decay_bias": "the half-life", "D": "0",
        "gate": "0", "gate_bias": "open: silu of it is 1",
    },
)  # fmt: skip
def discrete_mamba2(q, k, v, site, *, half_life: float = 64.0):
    """MOHAWK's Mamba-2: S_t = sigmoid(-a_t) S_(t-1) + k_t v_t^T, y_t = (scale S_t^T q_t + D v_t) silu(z_t).

    a = W x + bias for each token and query head, z = W x + b. No step on what is written, no
    convolution, no norm: a masked attention without softmax, to be matched to the pretrained one.
    """
    h = q.shape[1]
    k, v = site.kept(wide(k)), repeated(site.kept(wide(v)), h)
    a = from_tokens(site, site.tokens, "decay", h, bias=half_life_start(half_life))
    decay = at_tokens(site, -softplus(a))
    y = recurrence(site, wide(q) * site.scale, k, v, decay, causal=True)
    return as_dtype(gated(site, y + skipped(site, v, 0.0), site.tokens), q.dtype)
