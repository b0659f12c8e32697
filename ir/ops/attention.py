"""Attention and rotary positions, each defined by its body."""

from __future__ import annotations

from ..attributes import Size
from ..core import Value
from ..declare import Real, Tensor, composite
from ..dims import Dim
from ..errors import IRError
from ..types import DType, TensorType, bool_, broadcast, f16, i64
from . import elementwise as e
from . import graph, index, linear, shape
from . import reduce as r
from .activation import as_dtype, softmax, wide


@composite
def rope(x: Real, cos: Real, sin: Real):
    "x * cos + rotate_half(x) * sin: rotary positions, halves paired (arXiv:2104.09864)."
    half, last = x.shape[-1] // 2, x.rank - 1
    if half * 2 != x.shape[-1]:
        raise IRError(f"{x.shape[-1]} features do not pair up")
    first = shape.slice_(x, dim=last, start=0, end=half)
    second = shape.slice_(x, dim=last, start=half, end=x.shape[-1])
    return x * cos + shape.cat(-second, first, dim=last) * sin


def heads(q: TensorType | Value, k: TensorType | Value, v: TensorType | Value) -> Dim:
    """Query heads to each key head, of q [b,h,n,d], k [b,g,m,d], v [b,g,m,e].

    Raises IRError where the shapes are not those of attention.
    """
    if not q.rank == k.rank == v.rank == 4:
        raise IRError(f"q, k and v need four axes [b,h,n,d], given {q.rank}, {k.rank} and {v.rank}")
    if k.shape[:3] != v.shape[:3]:
        raise IRError(f"k [{_text(k)}] and v [{_text(v)}] differ before the last axis")
    if q.shape[0] != k.shape[0]:
        raise IRError(f"batch sizes differ: {q.shape[0]} and {k.shape[0]}")
    if q.shape[3] != k.shape[3]:
        raise IRError(f"q has {q.shape[3]} features a head, k has {k.shape[3]}")
    each = q.shape[1] // k.shape[1] if k.shape[1] != 0 else 0
    if each * k.shape[1] != q.shape[1]:
        raise IRError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key heads")
    return each


def _text(x: TensorType | Value) -> str:
    return ",".join(map(str, x.shape))


def grouped(q: Value, k: Value) -> Value:
    """q [b,h,n,d] with the query heads that share a key head of k laid end to end, [b,g,rn,d]."""
    b, g = k.shape[:2]
    return shape.reshape(q, shape=(b, g, heads(q, k, k) * q.shape[2], q.shape[3]))


def swap(x: Value) -> Value:
    """The last two axes of x exchanged."""
    return shape.permute(x, dims=(*range(x.rank - 2), x.rank - 1, x.rank - 2))


EMPTY = ("zero", "nan", "uniform")
"""What a row whose keys are all masked may give: see `attention`."""


def band(n: Dim, m: Dim, *, causal: bool, offset: Dim = 0, window: Dim | None = None) -> Value | None:
    """bool[n,m], True where `attention` lets query i see key j by position; None where everywhere.

    causal: j <= i + offset. window: |i + offset - j| < window.
    """
    rows = shape.reshape(index.arange(start=offset, end=n + offset, dtype=i64), shape=(n, 1))
    columns = index.arange(start=0, end=m, dtype=i64)
    keep = e.le(columns, rows) if causal else None
    if window is not None:
        distance = rows - columns
        near = e.lt(distance if causal else e.abs_(distance), window)
        keep = near if keep is None else e.logical_and(keep, near)
    return keep


@composite
def attention(
    q: Real, k: Real, v: Real, mask: Tensor | None = None, sink: Real | None = None, *, scale: float,
    softcap: float | None = None, causal: bool = False, offset: Size = 0, window: Size | None = None,
    empty: str = "zero",
):  # fmt: skip
    """softmax(scale * q k^T + mask) v for q [b,h,n,d], k [b,g,m,d], v [b,g,m,e]; h a multiple of g.

    mask: bool (True keeps) or additive, broadcastable to [b,h,n,m]. sink: [h], the score of a key
    that every query sees and whose value is 0 (arXiv:2309.17453); zeros for softmax-off-by-one.
    softcap: scores become softcap * tanh(score / softcap) before they are masked (arXiv:2408.00118).
    causal: key j is kept for query i iff j <= i + offset. window: also only iff
    |i + offset - j| < window. empty: what a row whose keys are all masked gives: "zero" as in torch's
    scaled_dot_product_attention, "nan" as a plain softmax of -inf, "uniform" the mean of all values
    as under a finite minus infinity. With a sink it is zero.
    """
    each = heads(q, k, v)
    (b, h, n, _), m = q.shape, k.shape[2]
    if empty not in EMPTY:
        raise IRError(f"empty={empty!r}: it is one of {', '.join(EMPTY)}")
    if (offset != 0 and not causal and window is None) or softcap == 0:
        raise IRError("an offset needs causal=True or a window, and softcap is not 0")
    narrow = q.dtype is f16 and abs(scale) < 1  # whose products overflow at 65504
    scores = linear.matmul(grouped(q * scale if narrow else q, k), swap(k))
    scores = wide(shape.reshape(scores, shape=(b, h, n, m))) * (1.0 if narrow else scale)
    if softcap is not None:
        scores = e.tanh(scores / softcap) * softcap
    keep = band(n, m, causal=causal, offset=offset, window=window)
    if keep is not None:
        scores = e.where(keep, scores, float("-inf"))
    if mask is not None:
        if broadcast(mask.shape, scores.shape) != scores.shape:
            raise IRError(f"mask [{_text(mask)}] does not broadcast to [{_text(scores)}]")
        if mask.dtype is bool_:
            scores = e.where(mask, scores, float("-inf"))
        else:
            scores = scores + as_dtype(mask, scores.dtype)
    if sink is not None:
        if sink.shape != (h,):
            raise IRError(f"sink [{_text(sink)}] is not one score for each of {h} heads")
        drain = shape.reshape(as_dtype(sink, scores.dtype), shape=(1, h, 1, 1))
        scores = shape.cat(scores, shape.expand(drain, size=(b, h, n, 1)), dim=3)
        weights = shape.slice_(softmax(scores, dim=3), dim=3, start=0, end=m)
    else:
        weights = softmax(scores, dim=3)
    masked = keep is not None or mask is not None
    if masked and sink is None and empty != "nan":
        dead = e.eq(r.amax(scores, dim=(3,), keepdim=True), float("-inf"))
        weights = e.where(dead, 0.0 if empty == "zero" else _one_over(m, weights.dtype), weights)
    weights = as_dtype(weights, v.dtype)
    out = linear.matmul(shape.reshape(weights, shape=(b, k.shape[1], each * n, m)), v)
    return as_dtype(shape.reshape(out, shape=(b, h, n, v.shape[3])), q.dtype)


def _one_over(m: Dim, dtype: DType) -> Value | float:
    if isinstance(m, int):
        return 1.0 / max(m, 1)
    return e.reciprocal(e.cast(graph.size(value=m, dtype=i64), dtype=dtype))
