"""The delta rule: a key's old value is taken out of the state before its new one is written."""

from __future__ import annotations

from ...ir import RecipeError, Value
from ...ir.dims import Dim
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.elementwise import sigmoid
from .pieces.gates import (
    at_tokens,
    from_tokens,
    gated,
    half_life_start,
    heads_of,
    log_decay,
    normed,
    short_conv,
    unit,
)
from .pieces.linear import recurrence
from .recipe import CAUSAL, Mixing, recipe

WRITES = {
    "conv_q": "the identity", "conv_k": "the identity", "conv_v": "the identity",
    "beta": "0, so that writing does not read the tokens", "beta_bias": "0: half of what is new is written",
    "norm": "1",
}  # fmt: skip
"""What every delta rule here learns."""
DECAYS = {"A_log": "0", "dt_bias": "the half-life"}
GATE = {"gate": "0", "gate_bias": "open: silu of it is 1"}


def delta_rule(
    q: Value,
    k: Value,
    v: Value,
    site: Mixing,
    decay: Value | None,
    *,
    conv: int,
    act: bool,
    negative: bool = False,
) -> Value:
    """The recurrence on convolved operands with q and k of unit length, normalised by head, in f32 or wider.

    decay: log decay [b, H, n] or [b, H, n, d], 0 at padded tokens, or None.
    """
    h, k, v = q.shape[1], site.kept(wide(k)), site.kept(wide(v))
    named = (("conv_q", wide(q)), ("conv_k", k), ("conv_v", v))
    q, k, v = (short_conv(site, x, name, conv, act=act) for name, x in named)
    q, k, v = unit(q) * site.scale, site.kept(unit(k)), site.kept(v)
    assert site.tokens is not None
    beta = at_tokens(site, sigmoid(from_tokens(site, site.tokens, "beta", h, bias=0.0)))
    beta = beta * 2.0 if negative else beta
    return normed(site, recurrence(site, q, k, v, decay, beta, causal=True))


@recipe(
    paper="arXiv:2406.06484", kind="needs training", masks=CAUSAL, needs={"tokens"}, learns=WRITES,
)  # fmt: skip
def deltanet(q, k, v, site, *, conv: int = 4, act: bool = True, negative: bool = False):
    """DeltaNet: S_t = S_(t-1) + b_t k_t (v_t - S_(t-1)^T k_t)^T, o_t = scale S_t^T q_t.

    b = sigmoid(W x + bias), one for each token and query head. q, k and v pass a causal depthwise
    convolution of `conv` tokens and silu if `act`, and q and k are then scaled to length 1; each head of
    the result is normalised by its root mean square. negative: 2 b instead of b, so that what is taken out
    of the state may turn its sign.
    """
    return as_dtype(delta_rule(q, k, v, site, None, conv=conv, act=act, negative=negative), q.dtype)


@recipe(
    paper="arXiv:2412.06464", kind="needs training", masks=CAUSAL, needs={"tokens"},
    learns={"decay": "0, so that decays do not read the tokens", **DECAYS, **WRITES, **GATE},
)  # fmt: skip
def gated_deltanet(q, k, v, site, *, conv: int = 4, act: bool = True, half_life: float = 32.0):
    """Gated DeltaNet: `deltanet` whose state first decays, by exp(-e^A_log softplus(W x + dt_bias)) a head.

    The result is times silu(W x + b). It starts at a half-life of `half_life` tokens; where the mean
    distance that the pretrained attention looks back is known, that is the half-life to give.
    """
    x, h = site.tokens, q.shape[1]
    decay = at_tokens(site, _decay(site, x, h, half_life))
    return as_dtype(gated(site, delta_rule(q, k, v, site, decay, conv=conv, act=act), x), q.dtype)


@recipe(
    paper="arXiv:2510.26692", kind="needs training", masks=CAUSAL, needs={"tokens"},
    learns={
        "decay_down": "N(0, 1 / channels)", "decay_up": "0, so that decays do not read the tokens", **DECAYS,
        **WRITES, **GATE,
    },
)  # fmt: skip
def kda(q, k, v, site, *, conv: int = 4, act: bool = True, half_life: float = 32.0, rank: int = 0):
    """Kimi Delta Attention: `gated_deltanet` with a decay of its own for each key feature.

    The decay's matrix is of rank `rank`, by default the width of a head.
    """
    (_, h, _, d), x = q.shape, site.tokens
    decay = _decay(site, x, h * d, half_life, rank or d)
    decay = site.kept(heads_of(decay, h))
    return as_dtype(gated(site, delta_rule(q, k, v, site, decay, conv=conv, act=act), x), q.dtype)


def _decay(site: Mixing, x: Value, count: Dim, half_life: float, rank: int = 0) -> Value:
    """[b, n, count]."""
    if half_life <= 0:
        raise RecipeError(f"half_life={half_life}: a positive number of tokens")
    return log_decay(site, from_tokens(site, x, "decay", count, rank=rank), bias=half_life_start(half_life))
