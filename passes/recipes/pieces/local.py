"""Attention to the neighbourhood, in blocks, and what a linear tail leaves to it.

Two neighbourhoods of i: "terraced", the own block of `size` tokens, the one before and, both ways,
the one after; "sliding", |i - j| < size (and j <= i when causal).
"""

from __future__ import annotations

from ....ir import IRError, Value
from ....ir.dims import Dim, ceildiv
from ....ir.ops.activation import wide
from ....ir.ops.attention import heads, swap
from ....ir.ops.elementwise import abs_, gt, le, logical_and, lt
from ....ir.ops.index import arange
from ....ir.ops.linear import matmul
from ....ir.ops.linear_attention import linear_attention
from ....ir.ops.reduce import cumsum
from ....ir.ops.shape import cat, expand, flip, permute, reshape, slice_
from ....ir.types import i64
from .parts import Part, kept, ones, softmax_part, zeros

KINDS = ("terraced", "sliding")


def blocks(x: Value, size: int, each: Dim = 1) -> Value:
    """x [b, h, n, d] as [b, h / each, c, each * size, d], zeros appended to fill the last block.

    each: query heads that share a key head; they lie one after another within a block.
    """
    b, h, n, d = x.shape
    c = ceildiv(n, size)
    padded = cat(x, zeros(x.dtype, b, h, c * size - n, d), dim=2)
    if each == 1:
        return reshape(padded, shape=(b, h, c, size, d))
    x = permute(reshape(padded, shape=(b, h // each, each, c, size, d)), dims=(0, 1, 3, 2, 4, 5))
    return reshape(x, shape=(b, h // each, c, each * size, d))


def tokens(x: Value, n: Dim, each: Dim = 1) -> Value:
    """The first n tokens of blocks x [b, g, c, each * size, d], as [b, each * g, n, d]."""
    b, g, c, rows, d = x.shape
    size = rows // each
    if each != 1:
        x = permute(reshape(x, shape=(b, g, c, each, size, d)), dims=(0, 1, 3, 2, 4, 5))
    return slice_(reshape(x, shape=(b, each * g, c * size, d)), dim=2, start=0, end=n)


def shifted(x: Value, by: int) -> Value:
    """Block i of the result is block i - by of x [b, h, c, ...], zeros beyond the ends."""
    b, h, c, *rest = x.shape
    gap = zeros(x.dtype, b, h, abs(by), *rest)
    joined = cat(gap, x, dim=2) if by > 0 else cat(x, gap, dim=2)
    start = 0 if by > 0 else -by
    return slice_(joined, dim=2, start=start, end=c + start)


def neighbours(causal: bool) -> tuple[int, ...]:
    """How far back the blocks of a neighbourhood lie."""
    return (1, 0) if causal else (1, 0, -1)


def windowed(
    q: Value, k: Value, v: Value, *, size: int, scale: float, causal: bool, kind: str = "terraced",
    padding: Value | None = None,
) -> Part:  # fmt: skip
    """Exact softmax of each query over its neighbourhood, as a Part [b, h, n, ...].

    q [b, h, n, d], k [b, g, n, d], v [b, g, n, e]; cost n * size. padding: bool [b or 1, 1, 1, n],
    True for keys that count.
    """
    each, n = heads(q, k, v), q.shape[2]
    part = windowed_blocks(q, k, v, size=size, scale=scale, causal=causal, kind=kind, padding=padding)
    return Part(*(tokens(x, n, each) for x in part))


def windowed_blocks(
    q: Value, k: Value, v: Value, *, size: int, scale: float, causal: bool, kind: str = "terraced",
    padding: Value | None = None,
) -> Part:  # fmt: skip
    """`windowed`, with queries left in blocks [b, g, c, each * size, ...]."""
    _check(q, k, size, kind)
    each, near = heads(q, k, v), neighbours(causal)
    k, v = kept(wide(k), padding), kept(wide(v), padding)
    x = blocks(wide(q) * scale, size, each)
    k, v, one = (cat(*(shifted(blocks(y, size), by) for by in near), dim=3) for y in (k, v, ones(k, padding)))
    keep = gt(swap(one), 0.0)  # [b, 1, c, 1, len(near) * size]
    inside = _inside(size, each, causal, kind)
    return softmax_part(matmul(x, swap(k)), v, keep if inside is None else logical_and(keep, inside))


def _check(q: Value, k: Value, size: int, kind: str) -> None:
    if size < 1 or kind not in KINDS:
        raise IRError(f"size={size}, kind={kind!r}: a positive size, and one of {', '.join(KINDS)}")
    if q.shape[2] != k.shape[2]:
        raise IRError(f"a neighbourhood needs as many queries as keys, not {q.shape[2]} and {k.shape[2]}")


def _inside(size: int, each: Dim, causal: bool, kind: str) -> Value | None:
    """bool [each * size, near * size]: the keys of the neighbouring blocks that a row sees; None for all."""
    width = size * len(neighbours(causal))
    row = reshape(arange(start=0, end=size, dtype=i64), shape=(size, 1))
    column = arange(start=-size, end=width - size, dtype=i64)
    keep = le(column, row) if causal else None
    if kind == "sliding":
        near = lt(row - column if causal else abs_(row - column), size)
        keep = near if keep is None else logical_and(keep, near)
    if keep is None:
        return None
    keep = expand(reshape(keep, shape=(1, size, width)), size=(each, size, width))
    return reshape(keep, shape=(each * size, width))


def far(
    q: Value, k: Value, v: Value, *, size: int, causal: bool, kind: str = "terraced",
    padding: Value | None = None,
) -> tuple[Value, Value]:  # fmt: skip
    """Sums over the keys outside the neighbourhood with weights q . k: of values, and of weights.

    q [b, h, n, f], k [b, g, n, f] after their feature maps, v [b, g, n, e]; the result is
    [b, h, n, e] and [b, h, n, 1], f32 or f64. Cost n f e.
    """
    _check(q, k, size, kind)
    each, (b, _, n, _), (_, g, _, e) = heads(q, k, v), q.shape, v.shape
    k, v = kept(wide(k), padding), kept(wide(v), padding)
    v1 = cat(v, expand(ones(k, padding), size=(b, g, n, 1)), dim=3)
    if kind == "terraced":
        states = outside(matmul(swap(blocks(k, size)), blocks(v1, size)), causal)
        out = tokens(matmul(blocks(wide(q), size, each), states), n, each)
    else:
        out = _older(wide(q), k, v1, size)
        if not causal:
            q, k, v1 = (flip(x, dims=(2,)) for x in (wide(q), k, v1))
            out = out + flip(_older(q, k, v1, size), dims=(2,))
    return slice_(out, dim=3, start=0, end=e), slice_(out, dim=3, start=e, end=e + 1)


def _older(q: Value, k: Value, v: Value, by: int) -> Value:
    """Linear attention to keys j <= i - by: causal, with the keys that much later."""

    def late(x: Value) -> Value:
        b, g, n, d = x.shape
        return slice_(cat(zeros(x.dtype, b, g, by, d), x, dim=2), dim=2, start=0, end=n)

    return linear_attention(q, late(k), late(v), causal=True, normalize=False)


def outside(x: Value, causal: bool) -> Value:
    """Sums over the blocks outside the neighbourhood of each, from blocks x [b, g, c, ...].

    Added from either end: taking the neighbourhood off the sum of all would leave the rounding of
    the large in the small.
    """
    before = shifted(cumsum(x, dim=2), 2)
    if causal:
        return before
    return before + shifted(flip(cumsum(flip(x, dims=(2,)), dim=2), dims=(2,)), -2)
