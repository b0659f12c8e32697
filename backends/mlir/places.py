"""What this torch-mlir does wrongly with windows and indices, said in other ops of the IR."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ...ir.core import OPS, Op, Value, building
from ...ir.graph import Graph
from ...ir.ops import elementwise as e
from ...ir.ops import reduce as r
from ...ir.ops import shape
from ...ir.ops.activation import as_dtype
from ...ir.ops.graph import const
from ...ir.ops.index import arange, gather
from ...ir.types import f32, i64, product
from .bodies import body, narrow

Ints = tuple[int, ...]


# ---- windows ------------------------------------------------------------------------------------


@body("max_pool2d", "max_pool3d")
def max_pool(defn: Any, x: Value, *, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints,
             ceil_mode: bool) -> Any:  # fmt: skip
    """torch-mlir has batches of images, with sizes rounded down."""
    n = len(kernel_size)
    if n == 2 and x.rank == 4 and not ceil_mode:
        return None
    at = x.shape[-n:]
    places = shape.reshape(arange(start=0, end=product(at), dtype=i64), shape=at)
    sizes = defn.infer(x.type, kernel_size=kernel_size, stride=stride, padding=padding,
                       dilation=dilation, ceil_mode=ceil_mode)[0].shape[-n:]  # fmt: skip
    found = []
    for value, fill in ((x, -math.inf), (shape.expand(places, size=x.shape), -1)):
        y = windows(value, fill, sizes, kernel_size, stride, padding, dilation)
        found.append(shape.reshape(y, shape=(*y.shape[: x.rank], -1)))
    values, spots = found  # what was padded is never the largest
    largest = e.eq(values, r.amax(values, dim=(x.rank,), keepdim=True))
    key = e.logical_and(e.logical_or(largest, e.isnan(values)), e.ge(spots, 0))
    best = r.argmax(e.cast(key, dtype=i64), dim=x.rank, keepdim=True)
    return tuple(shape.reshape(gather(y, best, dim=x.rank), shape=y.shape[:-1]) for y in found)


@body("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(defn: Any, x: Value, *, kernel_size: Ints, stride: Ints, padding: Ints, ceil_mode: bool,
             count_include_pad: bool, divisor_override: int | None = None) -> Any:  # fmt: skip
    """torch-mlir has batches of images, with sizes rounded down."""
    n = len(kernel_size)
    if n == 2 and x.rank == 4 and not ceil_mode and not narrow(x) and divisor_override is None:
        return None
    if narrow(x):
        wide = defn(e.cast(x, dtype=f32), kernel_size=kernel_size, stride=stride, padding=padding,
                    ceil_mode=ceil_mode, count_include_pad=count_include_pad,
                    **({} if n == 1 else {"divisor_override": divisor_override}))  # fmt: skip
        return e.cast(wide, dtype=x.dtype)
    sizes = [d for d in defn.infer(x.type, kernel_size=kernel_size, stride=stride, padding=padding,
                                   ceil_mode=ceil_mode,
                                   count_include_pad=count_include_pad).shape[-n:]]  # fmt: skip
    axes = tuple(range(x.rank, x.rank + n))
    window = (sizes, kernel_size, stride, padding, (1,) * n)
    total = r.sum_(windows(x, 0.0, *window), dim=axes)
    if divisor_override:
        return total / float(divisor_override)
    one = shape.expand(const(value=1.0, dtype=x.dtype), size=x.shape)
    if count_include_pad:  # what ceil_mode adds beyond the padding does not count
        around = tuple(p for pair in reversed([(p, p) for p in padding]) for p in pair)
        one, window = shape.pad(one, pad=around, value=1.0), (*window[:3], (0,) * n, window[4])
    return total / r.sum_(windows(one, 0.0, *window), dim=axes)


def windows(x: Value, fill: float, sizes: Sequence[Any], kernel: Ints, stride: Ints, padding: Ints,
            dilation: Ints) -> Value:  # fmt: skip
    """Windows over the last axes of x, as new last axes."""
    n, around = len(kernel), list[int]()
    for size, o, k, s, p, d in reversed(list(zip(x.shape[-n:], sizes, kernel, stride, padding, dilation))):
        around += [p, max(0, s * (o - 1) + d * (k - 1) + 1 - p - size)]
    y, first = x, x.rank - n
    if any(around):
        y = shape.pad(y, pad=tuple(around), value=fill)
    for i, (o, k, s, d) in enumerate(zip(sizes, kernel, stride, dilation)):
        reach = d * (k - 1) + 1
        y = shape.unfold(y, dimension=first + i, size=reach, step=s)
        y = shape.slice_(y, dim=first + i, start=0, end=o)
        y = shape.slice_(y, dim=y.rank - 1, start=0, end=reach, step=d)
    return y


@body("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def adaptive_avg_pool(defn: Any, x: Value, *, output_size: tuple[Any, ...]) -> Any:
    """One axis after the other, each cut into its windows."""
    y = as_dtype(x, f32) if narrow(x) else x
    for axis, count in enumerate(output_size, start=x.rank - len(output_size)):
        n, parts = y.shape[axis], []
        for i in range(count):
            part = shape.slice_(y, dim=axis, start=i * n // count, end=-(-(i + 1) * n // count))
            parts.append(r.mean(part, dim=(axis,), keepdim=True))
        y = shape.cat(*parts, dim=axis) if parts else shape.slice_(y, dim=axis, start=0, end=0)
    return as_dtype(y, x.dtype)


@body("pad")
def pad(defn: Any, x: Value, *, pad: Ints, mode: str, value: float | None) -> Any:
    """torch-mlir cannot go round in circles."""
    if mode != "circular":
        return None
    for axis, before, after in zip(range(x.rank - 1, -1, -1), pad[::2], pad[1::2]):
        size = x.shape[axis]
        last = shape.slice_(x, dim=axis, start=size - before, end=size)
        x = shape.cat(last, x, shape.slice_(x, dim=axis, start=0, end=after), dim=axis)
    return x


# ---- indices -------------------------------------------------------------------------------------


@body("gather", "scatter", "scatter_add", "index_select", "embedding")
def placed(defn: Any, x: Value, i: Value, *rest: Value, **attrs: Any) -> Any:
    """Indices are i64, and nothing has no axes: torch-mlir knows no others. Nor is src a number."""
    if i.dtype is not i64:
        return defn(x, e.cast(i, dtype=i64), *rest, **attrs)
    if defn.name in ("index_select", "embedding"):
        return None
    if not (x.rank and i.rank):
        x1, i1, *rest1 = (shape.reshape(v, shape=v.shape or (1,)) for v in (x, i, *rest))
        wanted = i.shape if defn.name == "gather" else x.shape
        return shape.reshape(defn(x1, i1, *rest1, **attrs), shape=wanted)
    if rest and rest[0].shape != i.shape:
        src = rest[0]
        if src.rank:
            for axis, size in enumerate(i.shape):
                src = shape.slice_(src, dim=axis, start=0, end=size)
        return defn(x, i, shape.expand(src, size=i.shape), **attrs)
    return None


@body("index", "index_put")
def indexed(defn: Any, *operands: Value | None, **attrs: Any) -> Any:
    """Indices are i64, all of them."""
    first = 1 if defn.name == "index" else 2
    if all(v is None or v.dtype is i64 for v in operands[first:]):
        return None
    cast = [v if v is None else as_dtype(v, i64) for v in operands[first:]]
    return defn(*operands[:first], *cast, **attrs)


def guard(op: Op) -> Iterator[tuple[int, int, Graph]]:
    """For each index operand: its place, the size of its axis, and a graph from the index to
    whether it is in range, and to the index brought into range."""
    for place, size, negative in _indices(op):
        i = op.inputs[place]
        if i is None:
            continue
        with building():
            x = OPS["input"](name="i", type=i.type)
            inside = e.logical_and(e.ge(x, -size if negative else 0), e.lt(x, size))
            passed = r.all_(inside)
            safe = e.where(inside, x, 0)
            if negative:
                safe = e.where(e.lt(safe, 0), safe + size, safe)
        yield place, size, Graph("guard", [x], [passed, safe])


def _indices(op: Op) -> Iterator[tuple[int, Any, bool]]:
    """(place among the operands, size of the axis, whether torch counts from the end) of each."""
    if not op.inputs or op.inputs[0] is None:
        return
    sizes = op.inputs[0].shape or (1,)
    if op.name == "embedding":
        yield 1, sizes[0], False
    elif op.name in ("gather", "index_select", "scatter", "scatter_add"):
        yield 1, sizes[op.attrs["dim"]], False
    elif op.name in ("index", "index_put"):
        first = 1 if op.name == "index" else 2
        for axis in range(len(op.inputs) - first):
            yield first + axis, sizes[axis], True
