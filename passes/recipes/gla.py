"""Gated linear attention: a decay of each key feature, read off the tokens."""

from __future__ import annotations

from ...ir import RecipeError
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.nonlinear import log_sigmoid
from .pieces.gates import flat, from_tokens, gated, heads_of, normed
from .pieces.linear import recurrence
from .recipe import CAUSAL, recipe


@recipe(
    paper="arXiv:2312.06635", kind="needs training", masks=CAUSAL, needs={"tokens"},
    learns={
        "decay_down": "N(0, 1 / channels)", "decay_up": "0, so that the decay does not read the tokens",
        "decay_bias": "0: the state halves in 16 tokens", "norm": "1", "gate": "0",
        "gate_bias": "open: silu of it is 1",
    },
)  # fmt: skip
def gla(q, k, v, site, *, rank: int = 16, temperature: float = 16.0, source: str = "tokens"):
    """Gated linear attention: S_t = diag(a_t) S_(t-1) + k_t v_t^T, o_t = scale S_t^T q_t.

    ln a = logsigmoid(W2 W1 x + b) / temperature, of each key feature and query head; x are the tokens
    or, with source="keys", the keys of all heads. Each head is then normalised by its root mean square,
    and times silu(W x + b).
    """
    if source not in ("tokens", "keys"):
        raise RecipeError(f"source={source!r}: it is 'tokens' or 'keys'")
    (_, h, _, d), k = q.shape, site.kept(k)
    x = site.tokens if source == "tokens" else flat(k)
    decay = log_sigmoid(from_tokens(site, x, "decay", h * d, rank=rank, bias=0.0)) / temperature
    decay = site.kept(heads_of(decay, h))
    o = recurrence(site, wide(q) * site.scale, k, site.kept(v), decay, causal=True)
    return as_dtype(gated(site, normed(site, o), site.tokens), q.dtype)
