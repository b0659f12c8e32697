"""Moving elements without computing on them."""

from typing import Any

import numpy as np

from ..attributes import Axes, Axis, Order, Shape, Size
from ..declare import Arithmetic, Tensor, moved, op
from ..dims import Dim, at_least, floordiv, maximum, minimum
from ..errors import IRError
from ..types import TensorType, product, promote


@op(aten="permute.default", numpy=lambda x, *, dims: np.transpose(x, dims), view=True)
def permute(x: Tensor, *, dims: Order):
    "The axes of x in another order: axis i of the result is axis dims[i] of x."
    return x.with_(shape=[x.shape[i] for i in dims])


@op(aten="reshape.default", numpy=lambda x, *, shape: np.reshape(x, shape), view=True)
def reshape(x: Tensor, *, shape: Shape):
    "The same elements in the same order under another shape. One dim may be -1."
    return x.with_(shape=resolve(x, shape))


def resolve(x: TensorType, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """`shape` with -1 worked out. Raises IRError unless the sizes are provably equal."""
    known = product(d for d in shape if d != -1)
    if -1 in shape:
        if shape.count(-1) > 1:
            raise IRError(f"shape {shape} has more than one -1")
        if known == 0:
            raise IRError(f"cannot tell the -1 in {shape}: another dim is 0")
        rest = floordiv(x.size, known)
        shape = tuple(rest if d == -1 else d for d in shape)
        known = known * rest
    if known != x.size:
        raise IRError(f"{x.size} elements cannot take shape ({', '.join(map(str, shape))})")
    return shape


def _expand(x: np.ndarray, *, size: tuple[int, ...]) -> np.ndarray:
    lead = len(size) - x.ndim
    return np.broadcast_to(x, [x.shape[i - lead] if d == -1 else d for i, d in enumerate(size)])


@op(aten="expand.default", numpy=_expand, view=True)
def expand(x: Tensor, *, size: Shape):
    "x repeated along new leading axes and along axes of size 1. -1 keeps an axis."
    lead = len(size) - x.rank
    if lead < 0:
        raise IRError(f"{len(size)} dims cannot hold {x.rank} axes")
    shape = list(size)
    for axis, dim in enumerate(x.shape, start=lead):
        if shape[axis] == -1:
            shape[axis] = dim
        elif dim not in (1, shape[axis]):
            raise IRError(f"axis {axis - lead} of size {dim} cannot expand to {shape[axis]}")
    if -1 in shape:
        raise IRError("-1 cannot stand for a new axis")
    return x.with_(shape=shape)


def _slice(x: np.ndarray, *, dim: int, start: int, end: int, step: int) -> np.ndarray:
    if not 0 <= start <= end:
        raise IRError(f"cannot slice from {start} to {end}")
    return x[(slice(None),) * dim + (slice(start, end, step),)]


@op(aten="slice.Tensor", numpy=_slice, view=True)
def slice_(x: Tensor, *, dim: Axis, start: Size, end: Size, step: int = 1):
    "Elements start, start+step, ... below end along one axis; 0 <= start <= end <= size."
    if step < 1:
        raise IRError(f"step {step} is not positive")
    if at_least(-start, 1) or at_least(start - end, 1):  # what is unknown was promised
        raise IRError(f"cannot slice from {start} to {end}")
    if not x.rank:
        raise IRError("a 0-d tensor has no axis to slice")
    size = x.shape[dim]
    if at_least(end - size, 1):
        raise IRError(f"end {end} is beyond size {size}")
    shape = list(x.shape)
    shape[dim] = floordiv(end - start + step - 1, step)
    return x.with_(shape=shape)


@op(aten=("cat.default", "concat.default", "concatenate.default"), flops=moved,
    numpy=lambda *xs, dim: np.concatenate(xs, axis=dim))  # fmt: skip
def cat(*xs: Tensor, dim: Axis = 0):
    "Tensors joined along one axis."
    if not xs or not xs[0].rank:
        raise IRError("there is no axis to join along")
    total: Dim = 0
    for x in xs:
        if x.rank != xs[0].rank or any(
            a != b for i, (a, b) in enumerate(zip(x.shape, xs[0].shape, strict=True)) if i != dim
        ):
            raise IRError("the axes that are not joined differ")
        total = total + x.shape[dim]
    shape = list(xs[0].shape)
    shape[dim] = total
    return TensorType(promote(*xs), tuple(shape))


@op(aten="flip.default", flops=moved, numpy=lambda x, *, dims: np.flip(x, dims))
def flip(x: Tensor, *, dims: Axes):
    "x backwards along some axes."
    return x


@op(aten="tril.default", flops=moved, numpy=lambda x, *, diagonal: np.tril(x, diagonal))
def tril(x: Arithmetic, *, diagonal: int = 0):
    "Zero above a diagonal of the last two axes: element (i, j) stays iff j <= i + diagonal."
    return _matrix(x)


@op(aten="triu.default", flops=moved, numpy=lambda x, *, diagonal: np.triu(x, diagonal))
def triu(x: Arithmetic, *, diagonal: int = 0):
    "Zero below a diagonal of the last two axes: element (i, j) stays iff j >= i + diagonal."
    return _matrix(x)


def _matrix(x: TensorType) -> TensorType:
    if x.rank < 2:
        raise IRError(f"{x} has no two axes")
    return x


_MODES: dict[str, Any] = {"constant": "constant", "reflect": "reflect", "replicate": "edge",
                          "circular": "wrap"}  # fmt: skip


def _pad(x, *, pad, mode, value):
    if max(map(abs, pad), default=0) > 1 << 32:
        raise IRError(f"pad={pad} is out of reason")
    if not pad:
        return x
    widths = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)][::-1]
    widths = [(0, 0)] * (x.ndim - len(widths)) + widths
    if mode == "constant":
        fill = np.asarray(0 if value is None else value).astype(x.dtype)
        y = np.pad(x, [(max(a, 0), max(b, 0)) for a, b in widths], constant_values=fill)
    else:
        y = np.pad(x, [(max(a, 0), max(b, 0)) for a, b in widths], mode=_MODES[mode])
    return y[tuple(slice(max(-a, 0), y.shape[i] - max(-b, 0)) for i, (a, b) in enumerate(widths))]


@op(aten="pad.default", numpy=_pad, flops=moved)
def pad(x: Tensor, *, pad: Shape, mode: str = "constant", value: float | None = None):
    """x with `pad` = (before last axis, after it, before last but one, ...) elements more; or fewer.

    mode: "constant" (value, 0 if None), "reflect", "replicate" or "circular".
    """
    if len(pad) % 2 or len(pad) > 2 * x.rank or mode not in _MODES:
        raise IRError(f"cannot pad {x} by {pad}, {mode!r}")
    if mode != "constant" and len(pad) // 2 not in (x.rank - 1, x.rank - 2):
        raise IRError(f"{mode!r} pads all axes but one or two, given {len(pad) // 2} of {x.rank}")
    shape = list(x.shape)
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), start=1):
        size = shape[-i]
        shape[-i] = size + before + after
        most = {"reflect": size - 1, "circular": size}.get(mode)
        if at_least(-shape[-i], 1):
            raise IRError(f"axis of size {size} cannot lose {-before - after}")
        if mode != "constant" and (at_least(-before, 1) or at_least(-after, 1)):
            raise IRError(f"{mode!r} cannot take elements away")
        if most is not None and (at_least(before - most, 1) or at_least(after - most, 1)):
            raise IRError(f"{mode!r} of size {size} has no {before} and {after} elements to give")
    return x.with_(shape=shape)


@op(aten="diagonal.default", view=True,
    numpy=lambda x, *, offset, dim1, dim2: np.diagonal(x, offset, dim1, dim2))  # fmt: skip
def diagonal(x: Tensor, *, offset: int = 0, dim1: Axis = 0, dim2: Axis = 1):
    "The elements (i, i + offset) of axes dim1 and dim2, as a new last axis."
    if dim1 == dim2 or x.rank < 2:
        raise IRError(f"axes {dim1} and {dim2} of {x} make no matrix")
    rows, columns = x.shape[dim1], x.shape[dim2]
    length = minimum(rows, columns - offset) if offset >= 0 else minimum(rows + offset, columns)
    rest = [d for i, d in enumerate(x.shape) if i not in (dim1, dim2)]
    return x.with_(shape=(*rest, maximum(length, 0)))


def _windows(x: np.ndarray, *, dimension: int, size: int, step: int) -> np.ndarray:
    if not x.ndim:
        return np.reshape(x, (size,))
    views = np.lib.stride_tricks.sliding_window_view(x, size, axis=dimension)
    return views[(slice(None),) * dimension + (slice(None, None, step),)]


@op(aten="unfold.default", numpy=_windows, view=True)
def unfold(x: Tensor, *, dimension: Axis, size: int, step: int):
    "Windows of `size` elements along one axis, every `step`, as a new last axis."
    if not x.rank:
        if size not in (0, 1):
            raise IRError(f"a 0-d tensor has no window of {size}")
        return x.with_(shape=(size,))
    length = x.shape[dimension]
    if size < 0 or step < 1 or at_least(size - length, 1):
        raise IRError(f"no windows of {size} every {step} in {length} elements")
    shape = list(x.shape)
    shape[dimension] = floordiv(length - size, step) + 1
    return x.with_(shape=(*shape, size))
