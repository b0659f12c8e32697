"""Reading and writing by position, and making index tensors."""

import math
from typing import Annotated, Any

import numpy as np

from ..attributes import Anything, Axis, Number, Size
from ..declare import Integer, Tensor, moved, op
from ..dims import Dim, Poly, at_least, floordiv
from ..errors import IRError
from ..types import DType, TensorType, broadcast, product

Index = Annotated[Any, "operand:i"]
"""An i64 or narrower signed index."""


@op(aten="embedding.default", numpy=lambda w, ids, **_: w[ids], flops=moved)
def embedding(w: Tensor, ids: Integer, *, padding_idx: int = -1):
    "Rows of w [count, d] at ids. The row padding_idx, if any, gets no gradient."
    if w.rank != 2:
        raise IRError(f"the table has {w.rank} axes, not 2")
    return w.with_(shape=(*ids.shape, w.shape[1]))


def _gather(x: np.ndarray, i: np.ndarray, *, dim: int) -> np.ndarray:
    if not x.ndim:
        return np.broadcast_to(x, i.shape)
    x = x[tuple(slice(0, i.shape[a]) if a != dim else slice(None) for a in range(x.ndim))]
    return np.take_along_axis(x, i, dim) if i.ndim else np.take(x, i)


@op(aten="gather.default", numpy=_gather, flops=moved)
def gather(x: Tensor, index: Index, *, dim: Axis):
    "x[i0, ..., index[i0, ..., id], ..., ik]: along dim from index, elsewhere in place."
    return x.with_(shape=_within(x, index, dim).shape)


def _within(x: TensorType, index: TensorType, dim: int) -> TensorType:
    """index, checked to have no more elements than x on axes other than dim."""
    if max(x.rank, 1) != max(index.rank, 1):
        raise IRError(f"index has {index.rank} axes, x has {x.rank}")
    for axis, (have, want) in enumerate(zip(x.shape, index.shape)):
        if axis != dim and at_least(want - have, 1):
            raise IRError(f"index wants {want} places on axis {axis}, x has {have}")
    return index


@op(aten="index_select.default", flops=moved, numpy=lambda x, i, *, dim: np.take(x, np.reshape(i, -1), dim))
def index_select(x: Tensor, index: Index, *, dim: Axis):
    "The places `index` [k] along one axis of x."
    if index.rank > 1 or not x.rank:
        raise IRError(f"cannot select {index} from {x}")
    count = index.shape[0] if index.rank else 1
    return x.with_(shape=[count if i == dim else d for i, d in enumerate(x.shape)])


def _positions(x: TensorType, indices: tuple[TensorType | None, ...]) -> tuple[Dim, ...]:
    """The shape of `x[indices]`, by numpy's rule for where the indexed axes go."""
    if len(indices) > x.rank or not indices:
        raise IRError(f"{len(indices)} indices for {x}")
    used = [i for i, index in enumerate(indices) if index is not None]
    if not used:
        raise IRError("every index is None")
    found = broadcast(*(index.shape for index in indices if index is not None))
    rest = [d for i, d in enumerate(x.shape) if i not in used]
    at = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    return (*rest[:at], *found, *rest[at:])


def _key(indices: tuple[np.ndarray | None, ...]) -> tuple[Any, ...]:
    return tuple(slice(None) if i is None else i for i in indices)


@op(aten="index.Tensor", flops=moved, numpy=lambda x, *indices: x[_key(indices)])
def index(x: Tensor, *indices: Index | None):
    "x[indices], an index tensor or None (all of the axis) for each leading axis."
    return x.with_(shape=_positions(x, indices))


def _index_put(x: np.ndarray, values: np.ndarray, *indices: Any, accumulate: bool) -> np.ndarray:
    result = x.copy()
    if accumulate:
        np.add.at(result, _key(indices), values)
    else:
        result[_key(indices)] = values
    return result


@op(aten="index_put.default", numpy=_index_put,
    flops=lambda x, values, *at, accumulate: product(_positions(x, at)) if accumulate else 0)  # fmt: skip
def index_put(x: Tensor, values: Tensor, *indices: Index | None, accumulate: bool = False):
    "x with values written, or added, at indices; which of several writes to a place wins is open."
    shape = _positions(x, indices)
    if x.dtype is not values.dtype or broadcast(values.shape, shape) != shape:
        raise IRError(f"values {values} do not fit {x.dtype}[{','.join(map(str, shape))}]")
    return x


def _scatter(write: Any) -> Any:
    def scattered(x, i, src, *, dim):
        result, i = np.array(x, ndmin=1), np.atleast_1d(i)
        src = np.atleast_1d(src) if src.ndim or i.size == 1 else np.broadcast_to(src, i.shape)
        places = [*np.indices(i.shape)]
        places[dim] = i
        write(result, tuple(places), src[tuple(slice(0, n) for n in i.shape)])
        return result.reshape(x.shape)

    return scattered


@op(aten=("scatter.value", "scatter.src"), flops=moved,
    numpy=_scatter(lambda x, at, src: x.__setitem__(at, src)))  # fmt: skip
def scatter(x: Tensor, index: Index, src: Tensor, *, dim: Axis):
    "x with src (a tensor like index, or a number) written at `index` along dim."
    return _scattered(x, index, src, dim)


@op(aten="scatter_add.default", numpy=_scatter(np.add.at), flops=lambda x, i, src, **_: i.size)
def scatter_add(x: Tensor, index: Index, src: Tensor, *, dim: Axis):
    "x with src added at `index` along dim."
    return _scattered(x, index, src, dim)


def _scattered(x: TensorType, index: TensorType, src: TensorType, dim: int) -> TensorType:
    _within(x, index, dim)
    if x.dtype is not src.dtype:
        raise IRError(f"src is {src.dtype}, x is {x.dtype}")
    if src.rank:
        _within(src, index, -1)
    return x


@op(aten="arange.start_step",
    numpy=lambda *, start, end, step, dtype: start + _places(start, end, step) * step)
def arange(*, start: Anything = 0, end: Anything, step: Anything = 1, dtype: DType):
    "start, start + step, ... as long as end is not reached; numbers or dims."
    if dtype.kind not in "uif" or (
        dtype.kind != "f" and any(isinstance(x, float) for x in (start, end, step))
    ):
        raise IRError(f"no {dtype} lies between {start} and {end} by {step}")
    return TensorType(dtype, (count(start, end, step),))


def _places(start: Any, end: Any, step: Any) -> np.ndarray:
    length: Any = count(start, end, step)
    return np.arange(length)


def count(start: Any, end: Any, step: Any) -> Dim:
    """How many numbers lie from start to end by step. Raises IRError for bounds that contradict."""
    if step == 0 or isinstance(step, Poly):
        raise IRError(f"cannot count by a step of {step}")
    if isinstance(start, Poly) or isinstance(end, Poly):
        if not isinstance(step, int) or isinstance(start, float) or isinstance(end, float):
            raise IRError(f"cannot count from {start} to {end} by {step}")
        return floordiv(end - start + step - 1, step) if step > 0 else floordiv(start - end - step - 1, -step)
    if not all(map(math.isfinite, (start, end, step))) or (end - start) * step < 0:
        raise IRError(f"cannot count from {start} to {end} by {step}")
    if all(isinstance(x, int) for x in (start, end, step)):
        return -((start - end) // step)
    return math.ceil((end - start) / step)


@op(aten="linspace.default",
    numpy=lambda *, start, end, steps, dtype: np.linspace(start, end, steps))  # fmt: skip
def linspace(*, start: Number, end: Number, steps: Size, dtype: DType):
    "`steps` numbers evenly from start to end, both included."
    if at_least(-steps, 1):
        raise IRError(f"steps={steps} is negative")
    if not dtype.is_float:
        raise IRError(f"{dtype} cannot be spaced evenly")
    return TensorType(dtype, (steps,))


@op(aten="eye.m", numpy=lambda *, n, m, dtype: np.eye(n, m))
def eye(*, n: Size, m: Size, dtype: DType):
    "Ones on the diagonal of [n, m], zeros elsewhere."
    if at_least(-n, 1) or at_least(-m, 1):
        raise IRError(f"[{n}, {m}] is no shape")
    return TensorType(dtype, (n, m))
