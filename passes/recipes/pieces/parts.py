"""Parts of one softmax: what some of the keys give, so that parts merge under one normaliser.

    part = windowed(q, k, v, size=64, scale=site.scale, causal=site.causal, padding=site.padding)
    rest = linear_part(*far(phi(q), phi(k), v, size=64, ...))
    out = merge(part, rest)

A weight of one part then counts as much as a weight of another: nothing has to be learnt to mix them.
"""

from __future__ import annotations

from typing import NamedTuple

from ....ir import OPS, IRError, Value
from ....ir.dims import Dim
from ....ir.ops.activation import as_dtype, wide
from ....ir.ops.attention import grouped, heads, swap
from ....ir.ops.elementwise import eq, exp, gt, maximum, where
from ....ir.ops.linear import matmul
from ....ir.ops.reduce import amax, sum_
from ....ir.ops.shape import cat, expand, reshape, slice_
from ....ir.types import DType, bool_
from ...masks import over_keys
from ..features import LOWEST


class Part(NamedTuple):
    """Some keys' share of attention, for each query: sum_j e^(s_j - level) v_j and the weights' sum.

    numerator: [..., e]. level: [..., 1], no score is above it; LOWEST where the part has no key, and
    numerator and total do not count there. total: [..., 1], sum_j e^(s_j - level). All f32, or f64.
    """

    numerator: Value
    level: Value
    total: Value


def zeros(dtype: DType, *shape: Dim) -> Value:
    """A tensor of zeros."""
    return expand(OPS["const"](value=0.0, dtype=dtype), size=shape)


def earlier(x: Value, by: int, segments: Value | None = None) -> Value:
    """Token t of the result is token t - by of x [b, h, n, d], 0 before the first.

    segments: integers [b, n]; 0 too where that token has another number than t.
    """
    b, h, n, d = x.shape
    moved = slice_(cat(zeros(x.dtype, b, h, by, d), x, dim=2), dim=2, start=0, end=n)
    if segments is None or not by:
        return moved
    now = reshape(segments, shape=(b, 1, n, 1))
    first = expand(slice_(now, dim=2, start=0, end=1), size=(b, 1, by, 1))
    then = slice_(cat(first, now, dim=2), dim=2, start=0, end=n)
    return where(eq(now, then), moved, 0.0)


def kept(x: Value, padding: Value | None) -> Value:
    """x [b, g, m, d] with zeros at padded keys; padding: bool [b or 1, 1, 1, m], True for keys."""
    return x if padding is None else where(over_keys(padding, x.shape[0], x.shape[2]), x, 0.0)


def ones(k: Value, padding: Value | None) -> Value:
    """[b, 1, m, 1] of ones, zeros at padded keys."""
    unit = OPS["const"](value=1.0, dtype=k.dtype)
    return kept(expand(unit, size=(k.shape[0], 1, k.shape[2], 1)), padding)


def joined(first: Part, *others: Part) -> Part:
    """The parts as one, under the highest of their levels."""
    for other in others:
        level = maximum(first.level, other.level)
        one, two = exp(first.level - level), exp(other.level - level)
        numerator = first.numerator * one + other.numerator * two
        first = Part(numerator, level, first.total * one + other.total * two)
    return first


def normalised(part: Part, dtype: DType | None = None) -> Value:
    """What attention over the part's keys gives: numerator / total; 0 where there is no key."""
    some = gt(part.level, 0.5 * LOWEST)  # of both, so that no gradient passes through 0 / 0
    out = where(some, part.numerator / where(some, part.total, 1.0), 0.0)
    return out if dtype is None else as_dtype(out, dtype)


def merge(*parts: Part, dtype: DType | None = None) -> Value:
    """Attention over the keys of all parts under one normaliser (arXiv:2205.14135 for exact parts)."""
    return normalised(joined(*parts), dtype)


def scaled(part: Part, factor: Value | float) -> Part:
    """The part with every weight times a positive factor, broadcast to [..., 1] (LoLCATs' mixing)."""
    return Part(part.numerator * factor, part.level, part.total * factor)


def linear_part(numerator: Value, total: Value, level: Value | None = None) -> Part:
    """A linear tail as a part: sums phi(q) . phi(k_j) v_j [..., e] and phi(q) . phi(k_j) [..., 1].

    level: the weights are e^level times what they say; by default they estimate e^(score) as they
    are. Rows whose weights do not sum to more than 0 count as having no key.
    """
    numerator, total = wide(numerator), wide(total)
    level = zeros(total.dtype, *total.shape) if level is None else level
    return Part(numerator, where(gt(total, 0.0), level, LOWEST), total)


def softmax_part(scores: Value, v: Value, keep: Value | None = None) -> Part:
    """The part of scores [..., n, m] and values [..., m, e]; keep: bool, broadcast to the scores."""
    if keep is not None:
        scores = where(keep, scores, LOWEST)
    level = amax(scores, dim=(scores.rank - 1,), keepdim=True)
    weights = exp(scores - level)
    return Part(matmul(weights, v), level, sum_(weights, dim=(scores.rank - 1,), keepdim=True))


def few(q: Value, k: Value, v: Value, *, scale: float, padding: Value | None = None,
        bias: Value | None = None) -> Part:  # fmt: skip
    """Exact softmax of q [b, h, n, d] over few keys k [b, g, m, d], v [b, g, m, e]: cost n m.

    For agents, landmarks, pooled windows, compressed keys, and for few queries over many keys. Where
    nothing is merged with it the op `attention` says the same, and backends have a kernel for that.
    padding: bool [b or 1, 1, 1, m], True for keys that count. bias: added to the scores,
    broadcast to [b, h, n, m].
    """
    each, (b, h, n, _), (g, m) = heads(q, k, v), q.shape, k.shape[1:3]
    x, k, v = wide(q) * scale, kept(wide(k), padding), kept(wide(v), padding)
    scores = reshape(matmul(grouped(x, k), swap(k)), shape=(b, h, n, m))
    if bias is not None:
        scores = scores + as_dtype(bias, scores.dtype)
    if padding is not None and padding.dtype is not bool_:
        raise IRError(f"padding is {padding.type}, not bool")
    scores = scores if padding is None else where(padding, scores, LOWEST)
    flat = softmax_part(reshape(scores, shape=(b, g, each * n, m)), v)
    return Part(*(reshape(x, shape=(b, h, n, x.shape[3])) for x in flat))
