"""MLGRU: one number of state for each channel, no matrix product between tokens."""

from __future__ import annotations

import math

from ...ir import RecipeError
from ...ir.ops.activation import as_dtype, silu, wide
from ...ir.ops.elementwise import sigmoid
from ...ir.ops.norm import rms_norm
from ...ir.ops.scan import linear_scan
from ...ir.ops.shape import reshape
from .pieces.gates import filled, flat, heads_of, repeated
from .pieces.parts import earlier
from .recipe import CAUSAL, recipe


@recipe(
    paper="arXiv:2406.02528", kind="needs training", masks=CAUSAL, square=True,
    learns={"norm": "1", "bound": "a forget gate of at least layer / layers"},
)  # fmt: skip
def mlgru(q, k, v, site):
    """MatMul-free mixing: h_t = f_t h_(t-1) + (1 - f_t) silu(v_t), o_t = rms(k_t) silu(h_t), by channel.

    f = bound + (1 - bound) sigmoid(q): queries are the forget gate, keys the output gate, values the
    input, through the projections that are there (ternary ones are a matter of precision). The
    bound of the paper is a running sum over layers of one softmax; here each layer learns its own from where
    that starts, and the first layer's is 0 in both.
    """
    (_, h, _, d), e, dtype = q.shape, v.shape[3], q.dtype
    if d != e:
        raise RecipeError(f"queries are its forget gate, and values have {e} features a head, not {d}")
    q, k, v = (repeated(x, h) for x in (wide(q), site.kept(wide(k)), site.kept(wide(v))))
    f = sigmoid(q)
    if site.index:
        share = min(site.index / site.count, 1 - 1e-6)
        start = filled(math.log(share / (1 - share)), f.dtype, h * e)
        bound = reshape(sigmoid(site.learn("bound", start)), shape=(h, 1, e))
        f = bound + f * (1.0 - bound)
    written = site.kept(silu(v) * (1.0 - f))
    f = 1.0 - site.kept(1.0 - f)
    segments = site.segments(q.shape[0])
    if segments is not None:  # nothing is left of the sequence before
        f = f * earlier(filled(1.0, f.dtype, q.shape[0], 1, q.shape[2], 1), 1, segments)
    state = linear_scan(written, f)
    norm = site.learn("norm", filled(1.0, f.dtype, h * e))
    gate = rms_norm(flat(k), norm, normalized_shape=(h * e,), eps=1e-5)
    return as_dtype(heads_of(gate, h) * silu(state), dtype)
