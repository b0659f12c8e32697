"""RWKV-6: a decay of each key feature, read off the tokens; a token reads the state before its own."""

from __future__ import annotations

import math

from ...ir import RecipeError, Value
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.elementwise import exp, tanh
from ...ir.ops.linear_attention import linear_attention
from ...ir.ops.reduce import sum_
from ...ir.ops.shape import cat, reshape, slice_
from .pieces.gates import filled, from_tokens, gated, heads_of, normed, repeated
from .pieces.parts import earlier, zeros
from .recipe import CAUSAL, Mixing, recipe

LEARNS = {
    "decay_down": "N(0, 1 / channels)", "decay": "0, so that decays do not read the tokens",
    "decay_bias": "the half-life", "bonus": "1", "norm": "1", "gate": "0",
    "gate_bias": "open: silu of it is 1",
}  # fmt: skip


def log_decays(site: Mixing, h: int, d: int, rank: int, half_life: float) -> Value:
    """-exp(W2 tanh(W1 x) + bias), [b, h, n, d]."""
    if half_life <= 0:
        raise RecipeError(f"half_life={half_life}: a positive number of tokens")
    assert site.tokens is not None
    lora = tanh(from_tokens(site, site.tokens, "decay_down", rank, random=True))
    w = from_tokens(site, lora, "decay", h * d, bias=math.log(math.log(2) / half_life))
    return heads_of(-exp(w), h)


def from_before(
    q: Value, k: Value, v: Value, decay: Value, *, back: bool = False, segments: Value | None = None
) -> Value:
    """S_(t-1)^T q_t of S_t = diag(exp(decay_t)) S_(t-1) + k_t v_t^T; back: of the states from the end."""
    if back:
        k, v, decay = map(_later, (k, v, decay))
    else:
        k, v, decay = earlier(k, 1, segments), earlier(v, 1), earlier(decay, 1)
    rest = dict(causal=True, normalize=False, reverse=back)
    return linear_attention(q, k, v, decay, None, None, segments, **rest)


def of_itself(site: Mixing, q: Value, k: Value, v: Value) -> Value:
    """(diag(bonus) k_t v_t^T)^T q_t with a learned bonus [h, d] that starts at 1."""
    h, d = q.shape[1], q.shape[3]
    bonus = reshape(site.learn("bonus", filled(1.0, q.dtype, h, d)), shape=(h, 1, d))
    return sum_(q * repeated(k, h) * bonus, dim=(3,), keepdim=True) * repeated(v, h)


def _later(x: Value) -> Value:
    """Token t of the result is t + 1 of x [b, h, n, d], 0 after the last."""
    b, h, n, d = x.shape
    return slice_(cat(x, zeros(x.dtype, b, h, 1, d), dim=2), dim=2, start=1, end=n + 1)


@recipe(
    paper="arXiv:2404.05892", kind="needs training", masks=CAUSAL, needs={"tokens"},
    learns=LEARNS,
)  # fmt: skip
def rwkv6(q, k, v, site, *, rank: int = 64, half_life: float = 32.0):
    """RWKV-6: each token reads the state before its own, and itself by a learned bonus.

        S_t = diag(exp(-exp(w_t))) S_(t-1) + k_t v_t^T,  o_t = scale (S_(t-1) + diag(bonus) k_t v_t^T)^T q_t

    w = W2 tanh(W1 x) + bias of each key feature and query head, W1 of `rank` rows. Each head is then
    normalised, and times silu(W x + b). Queries, keys and values are projected as they were, without the
    paper's mixing of each token with the one before.
    """
    (b, h, _, d), k, v = q.shape, site.kept(wide(k)), site.kept(wide(v))
    x, decay = wide(q) * site.scale, site.kept(log_decays(site, h, d, rank, half_life))
    o = from_before(x, k, v, decay, segments=site.segments(b)) + of_itself(site, x, k, v)
    return as_dtype(gated(site, normed(site, o), site.tokens), q.dtype)
