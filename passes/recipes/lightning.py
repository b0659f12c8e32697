"""Lightning attention: constant decays, slopes of a head and a layer."""

from __future__ import annotations

from ...ir import OPS, RecipeError, Value
from ...ir.dims import Dim
from ...ir.ops.activation import as_dtype, silu, wide
from ...ir.ops.elementwise import exp, sigmoid
from ...ir.ops.norm import rms_norm
from ...ir.ops.shape import cat, reshape
from ...ir.types import DType
from .pieces.gates import flat, from_tokens, heads_of, places
from .pieces.linear import recurrence
from .recipe import CAUSAL, recipe
from .retnet import constant_decay

LN2 = 0.6931471805599453


def alibi(h: Dim, dtype: DType) -> Value:
    """[h] slopes 2^(-8 (i + 1) / h); for h that is no power of 2 those of the power below, then every other
    one of the power above (arXiv:2108.12409)."""
    if not isinstance(h, int):
        raise RecipeError(f"the slopes of {h} heads: their number has to be known")
    below = 1 << (h.bit_length() - 1)
    first = exp((places(below, dtype) + 1.0) * (-8.0 * LN2 / below))
    if below == h:
        return first
    return cat(first, exp((places(h - below, dtype) * 2.0 + 1.0) * (-4.0 * LN2 / below)), dim=0)


@recipe(
    paper="arXiv:2307.14995", kind="needs training", masks=CAUSAL, needs={"tokens"},
    learns={"gate_down": "N(0, 1 / channels)", "gate_up": "0, so that the gate is 1/2 for all tokens"},
)  # fmt: skip
def lightning(q, k, v, site, *, slopes: tuple[float, ...] = (), rule: str = "alibi"):
    """TransNormer: weights silu(q_i) . silu(k_j) exp(-slope (i - j)), no softmax, no scale, no normaliser.

    Values pass silu too; the result is set to unit mean square over all heads together, and times
    sigmoid(W2 W1 x). slopes: one for each head, or none for the rule: "alibi", ALiBi's slopes times
    1 - layer / (layers - 1) + 1e-5, or "paper", (8 head / heads) (1 - layer / layers).
    """
    (b, h, n, d), e = q.shape, v.shape[3]
    x, k, v = silu(wide(q)), site.kept(silu(wide(k))), site.kept(silu(wide(v)))
    if slopes:
        if len(slopes) != h:
            raise RecipeError(f"{len(slopes)} slopes for {h} heads: one for each is needed")
        each = (reshape(OPS["const"](value=float(s), dtype=x.dtype), shape=(1,)) for s in slopes)
        slope = cat(*each, dim=0)
    elif rule == "alibi":
        slope = alibi(h, x.dtype) * (1.0 - site.index / max(site.count - 1, 1) + 1e-5)
    elif rule == "paper":
        slope = places(h, x.dtype) * (8.0 / h * (1.0 - site.index / site.count))
    else:
        raise RecipeError(f"rule={rule!r}: it is 'alibi' or 'paper'")
    decay = constant_decay(site, -slope, b, n)
    o = recurrence(site, x, k, v, decay, causal=True)
    o = rms_norm(flat(o), normalized_shape=(h * e,), eps=1e-6)
    gate = sigmoid(from_tokens(site, site.tokens, "gate", h * e, rank=d))
    return as_dtype(heads_of(o * gate, h), q.dtype)
