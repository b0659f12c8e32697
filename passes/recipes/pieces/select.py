"""Exact attention to the blocks of keys that a block of queries scores highest, the rest in outline."""

from __future__ import annotations

from ....ir import IRError, Value
from ....ir.dims import Dim
from ....ir.dims import maximum as larger
from ....ir.ops.activation import wide
from ....ir.ops.attention import heads, swap
from ....ir.ops.elementwise import cast, gt, le, log, logical_and, logical_not, lt, maximum, where
from ....ir.ops.index import arange, gather, scatter
from ....ir.ops.linear import matmul
from ....ir.ops.reduce import cumsum, sum_, topk
from ....ir.ops.shape import cat, expand, reshape
from ....ir.types import i64
from ..features import LOWEST
from .local import blocks, shifted, tokens
from .parts import Part, joined, kept, ones, softmax_part, zeros

RESTS = ("none", "pooled", "zeroth", "first")


def selected(
    q: Value, k: Value, v: Value, *, size: int, count: int, scale: float, causal: bool,
    rest: str = "zeroth", sinks: int = 0, padding: Value | None = None,
) -> Part:  # fmt: skip
    """Exact softmax over the `count` best blocks of `size` keys, and what `rest` says for the others.

    Blocks are scored by the mean query of a block (over its heads that share a key head too) with the
    mean key; the first `sinks` blocks come before all others (arXiv:2309.17453). Causal: only earlier
    blocks are scored, by the first query of a block, so that no query has a say in what an earlier
    one sees; the own block is always exact as well.
    rest: "none" leaves the others out (Kinetics, arXiv:2506.05333); "pooled" takes them as one key and
    value, their means; "zeroth" each block as its mean key and value; "first" adds the linear term of
    the deviations of keys, by one matrix for all blocks (all earlier ones), as PISA does.
    q [b, h, n, d], k [b, g, m, d], v [b, g, m, e]; padding: bool [b or 1, 1, 1, m].
    Cost: n count size (d + e) for what is exact, n m (d + e) / size^2 for choosing and "pooled", and
    n m (d + e) / size for "zeroth" and "first": linear only while n is far below count size^3, or
    count size^2.
    """
    if rest not in RESTS or size < 1 or count < 1 or not 0 <= sinks <= count:
        given = f"size={size}, count={count}, sinks={sinks}, rest={rest!r}"
        raise IRError(f"{given}: positive, sinks among the count, and one of {', '.join(RESTS)}")
    each, n, m = heads(q, k, v), q.shape[2], k.shape[2]
    if causal and n != m:
        raise IRError(f"causal=True needs as many queries as keys, not {n} and {m}")
    x, k, v = wide(q) * scale, kept(wide(k), padding), kept(wide(v), padding)
    seen, one = kept(x, padding) if n == m else x, ones(k, padding)  # padded queries choose nothing
    x, seen = (_at_least(blocks(y, size, each), count) for y in (x, seen))
    k, v, one = (_at_least(blocks(y, size), count) for y in (k, v, one))
    b, g, c = x.shape[:3]
    if causal:
        seen = where(_first(one, each), seen, 0.0)

    length, sum_k, sum_v = (sum_(y, dim=(3,), keepdim=True) for y in (one, k, v))  # [b, g, blocks, 1, .]
    means = _flat(sum_k / maximum(length, 1.0)), _flat(sum_v / maximum(length, 1.0))
    choice = swap(_flat(gt(length, 0.0)))  # [b, 1, 1, blocks]: which may be picked
    if causal:
        choice = logical_and(choice, _earlier(c))
    score = matmul(sum_(seen, dim=(3,)), swap(means[0]))
    if sinks:
        score = where(lt(arange(start=0, end=k.shape[2], dtype=i64), sinks), -LOWEST, score)
    best, place = topk(where(choice, score, LOWEST), k=count, dim=3)  # [b, g, c, count]
    picked = gt(best, 0.5 * LOWEST)

    whole = expand(one, size=(*k.shape[:4], 1))
    near_k, near_v, near_one = (_gathered(y, place) for y in (k, v, whole))
    real = expand(reshape(picked, shape=(*place.shape, 1)), size=(*place.shape, size))
    real = logical_and(reshape(real, shape=(b, g, c, 1, count * size)), gt(swap(near_one), 0.0))
    found = softmax_part(matmul(x, swap(near_k)), near_v, real)
    if causal:
        found = joined(found, _own(x, k, v, one, each))
    if rest != "none":
        taken = gt(scatter(zeros(k.dtype, *score.shape), place, cast(picked, dtype=k.dtype), dim=3), 0.0)
        others = logical_and(choice, logical_not(taken))  # [b, g, c, blocks]
        sums = length, sum_k, sum_v
        if rest == "pooled":
            found = joined(found, _pooled(x, others, *map(_flat, sums)))
        else:
            found = joined(
                found, _outline(x, k, v, others, means, *sums, first=rest == "first", causal=causal)
            )
    return Part(*(tokens(y, n, each) for y in found))


def _at_least(x: Value, count: int) -> Value:
    """Blocks x [b, g, c, ...] with empty ones appended until there are `count`."""
    b, g, c, *others = x.shape
    return cat(x, zeros(x.dtype, b, g, larger(c, count) - c, *others), dim=2)


def _flat(x: Value) -> Value:
    """[b, g, c, 1, d] as [b, g, c, d]."""
    b, g, c, _, d = x.shape
    return reshape(x, shape=(b, g, c, d))


def _earlier(c: Dim) -> Value:
    """bool [c, c]: the blocks before each."""
    place = arange(start=0, end=c, dtype=i64)
    return lt(place, reshape(place, shape=(c, 1)))


def _first(one: Value, each: Dim) -> Value:
    """bool [b, 1, c, each * size, 1]: the first token of each block that is no padding, for each head."""
    b, _, c, size, _ = one.shape
    first = reshape(logical_and(gt(one, 0.0), lt(cumsum(one, dim=3), 1.5)), shape=(b, 1, c, 1, size, 1))
    return reshape(expand(first, size=(b, 1, c, each, size, 1)), shape=(b, 1, c, each * size, 1))


def _gathered(x: Value, place: Value) -> Value:
    """The blocks of x [b, g, c, size, d] at place [b, g, r, count], joined: [b, g, r, count * size, d]."""
    (b, g, c, size, d), (r, count) = x.shape, place.shape[2:]
    index = expand(reshape(place, shape=(b, g, r * count, 1)), size=(b, g, r * count, size * d))
    found = gather(reshape(x, shape=(b, g, c, size * d)), index, dim=2)
    return reshape(found, shape=(b, g, r, count * size, d))


def _own(x: Value, k: Value, v: Value, one: Value, each: Dim) -> Part:
    """Causal softmax of each block of queries over its own block."""
    size = k.shape[3]
    place = arange(start=0, end=size, dtype=i64)
    past = reshape(le(place, reshape(place, shape=(size, 1))), shape=(1, size, size))
    past = reshape(expand(past, size=(each, size, size)), shape=(each * size, size))
    return softmax_part(matmul(x, swap(k)), v, logical_and(gt(swap(one), 0.0), past))


def _pooled(x: Value, others: Value, length: Value, sum_k: Value, sum_v: Value) -> Part:
    """All other blocks as one key and value, their means, that weigh as many keys as they have."""
    share = cast(others, dtype=x.dtype)
    (b, g, c), e = others.shape[:3], sum_v.shape[3]
    count = matmul(share, expand(length, size=(b, g, *length.shape[2:])))  # [b, g, c, 1]
    some = maximum(count, 1.0)
    mean_k = reshape(matmul(share, sum_k) / some, shape=(b, g, c, x.shape[4], 1))
    mean_v = reshape(matmul(share, sum_v) / some, shape=(b, g, c, 1, e))
    level = matmul(x, mean_k) + reshape(log(some), shape=(b, g, c, 1, 1))
    level = where(reshape(gt(count, 0.0), shape=(b, g, c, 1, 1)), level, LOWEST)
    unit = zeros(x.dtype, *level.shape) + 1.0
    return Part(mean_v * unit, level, unit)


def _outline(x: Value, k: Value, v: Value, others: Value, means: tuple[Value, Value], length: Value,
             sum_k: Value, sum_v: Value, *, first: bool, causal: bool) -> Part:  # fmt: skip
    """Each other block as its mean key and value; `first`: and the deviations, by one matrix for all."""
    b, g, c, many = others.shape
    mean_k, mean_v = (reshape(y, shape=(b, g, 1, many, y.shape[3])) for y in means)
    weight = reshape(log(maximum(length, 1.0)), shape=(b, 1, 1, 1, many))
    part = softmax_part(matmul(x, swap(mean_k)) + weight, mean_v, reshape(others, shape=(b, g, c, 1, many)))
    if not first:
        return part
    spread = matmul(swap(k), v) - matmul(swap(sum_k), sum_v) / maximum(length, 1.0)  # [b, g, blocks, d, e]
    if causal:
        spread, total = (shifted(cumsum(y, dim=2), 1) for y in (spread, length))
    else:
        spread, total = (sum_(y, dim=(2,), keepdim=True) for y in (spread, length))
    lean = matmul(x, spread) / maximum(total, 1.0)
    return Part(part.numerator + lean * part.total, part.level, part.total)
