"""Linformer: keys and values projected along the sequence to a fixed number of them."""

from __future__ import annotations

from ...ir import RecipeError, Value
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.attention import attention
from ...ir.ops.elementwise import cast, gt, logical_and, lt
from ...ir.ops.index import arange
from ...ir.ops.linear import matmul
from ...ir.ops.reduce import sum_
from ...ir.ops.shape import expand, reshape, slice_
from ...ir.types import DType, i64
from .recipe import recipe


@recipe(
    paper="arXiv:2006.04768", kind="needs training", masks={"none", "padding"},
    learns={"E": "means of segments of the maximal length", "F": "the same"},
)  # fmt: skip
def linformer(q, k, v, site, *, size: int = 128, length: int = 0, shared: bool = False):
    """Linformer: O = softmax(s Q (E K)^T) F V with E, F [size, length] learned for each key head.

    length: the most keys there can be, 0 for as many as there are; fewer keys take the first columns of
    E and F. Padded keys are zero before they are projected. shared: one E and one F for all heads.
    At the start rows are means of segments of the maximal length: the softmax itself where there are
    as many keys as rows, none of them padded. Rows that short inputs or padding leave empty keep a
    score of 0 and a value of 0, and take their share.
    """
    m, g = k.shape[2], k.shape[1]
    if size < 1 or length < 0:
        raise RecipeError(f"size={size}, length={length}: a positive size, and a length or 0")
    if not length and not isinstance(m, int):
        raise RecipeError(f"E and F have a column for each key, and there are {m}: give the most as length=")
    most = length or m
    if isinstance(m, int) and m > most:
        raise RecipeError(f"{m} keys are more than length={most}, for which E and F are made")
    rows = min(size, most)
    start = expand(segments(rows, most, q.dtype), size=(1 if shared else g, rows, most))
    few_k = projected(site.learn("E", start), site.kept(k))
    few_v = projected(site.learn("F", start), site.kept(v))
    return attention(q, few_k, few_v, scale=site.scale)


def segments(count: int, length: int, dtype: DType) -> Value:
    """[count, length] whose row i takes the mean of places i length / count .. (i + 1) length / count."""
    place = arange(start=0, end=length, dtype=i64) * count
    first = reshape(arange(start=0, end=count, dtype=i64) * length, shape=(count, 1))
    inside = cast(logical_and(gt(place + count, first), lt(place, first + length)), dtype=dtype)
    return inside / sum_(inside, dim=(1,), keepdim=True)


def projected(w: Value, x: Value) -> Value:
    """w [1 or g, size, length] times x [b, g, m, d] along its tokens, m up to length: [b, g, size, d]."""
    w = slice_(w, dim=2, start=0, end=x.shape[2])
    return as_dtype(matmul(as_dtype(w, wide(x).dtype), wide(x)), x.dtype)
