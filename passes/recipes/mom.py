"""Mixture of memories: several states, of which each token writes to and reads from a few."""

from __future__ import annotations

from ...ir import RecipeError
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.elementwise import gt, sigmoid, where
from ...ir.ops.shape import cat, permute, reshape
from .deltanet import CAUSAL, DECAYS, GATE, WRITES
from .pieces import from_memories, ones, routing, to_memories
from .pieces.gates import from_tokens, gated, half_life_start, log_decay, normed, short_conv, unit
from .pieces.linear import recurrence
from .recipe import recipe


@recipe(
    paper="arXiv:2502.13685", kind="needs training", masks=CAUSAL, needs={"tokens"},
    learns={
        "router": "N(0, 1 / channels)", "decay": "0, so that decays do not read the tokens", **DECAYS,
        **WRITES, **GATE,
    },
)  # fmt: skip
def mom(q, k, v, site, *, memories: int = 4, chosen: int = 2, conv: int = 4, half_life: float = 32.0):
    """Gated DeltaNet with `memories` states, of which a token takes part in `chosen`, and one for all tokens.

    o = sum_m w_m o^m + o^shared; w is the softmax of the router's logits W x over the chosen. Each memory
    has its own decay and write strength, and the keys and values are shared (the paper's single_kv_proj).
    Tokens that a memory is not chosen by leave it as it is, at the cost of a pass over them. In training
    only, the paper adds a loss that keeps the choices even; it is no part of what runs, and who trains
    the router adds it: pieces.load_balance.
    """
    if not 1 <= chosen <= memories:
        raise RecipeError(f"chosen={chosen} of memories={memories}: from 1 to all of them")
    if half_life <= 0:
        raise RecipeError(f"half_life={half_life}: a positive number of tokens")
    (b, h, n, _), x, many = q.shape, site.tokens, memories + 1
    named = (("conv_q", wide(q)), ("conv_k", site.kept(wide(k))), ("conv_v", site.kept(wide(v))))
    q_, k, v = (short_conv(site, y, name, conv) for name, y in named)
    q_, k, v = unit(q_) * site.scale, site.kept(unit(k)), site.kept(v)
    weights, which = routing(
        from_tokens(site, x, "router", memories, random=True), chosen, padding=site.padding
    )
    one = ones(k, site.padding)  # the shared memory: for every token, with weight 1
    weights, which = cat(weights, as_dtype(one, weights.dtype), dim=1), cat(which, gt(one, 0.0), dim=1)

    def taking_part(y):
        "y [b, n, many * h] as [b, many * h, n], 0 at tokens that a memory is not chosen by."
        y = reshape(permute(y, dims=(0, 2, 1)), shape=(b, many, h, n, 1))
        y = where(reshape(which, shape=(b, many, 1, n, 1)), y, 0.0)
        return reshape(y, shape=(b, many * h, n))

    beta = taking_part(sigmoid(from_tokens(site, x, "beta", many * h, bias=0.0)))
    steps = reshape(from_tokens(site, x, "decay", many * h), shape=(b, n * many, h))
    decay = log_decay(site, steps, bias=half_life_start(half_life))
    decay = taking_part(reshape(decay, shape=(b, n, many * h)))
    k, v = to_memories(k, which, many), to_memories(v, which, many)
    o = recurrence(site, to_memories(q_, None, many), k, v, decay, beta, causal=True)
    return as_dtype(gated(site, normed(site, from_memories(o, weights)), x), q.dtype)
