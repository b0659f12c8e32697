"""Moving elements without computing on them."""

import numpy as np

from ..attributes import Axis, Order, Shape, Size
from ..declare import Tensor, op
from ..dims import Dim, at_least, floordiv
from ..errors import IRError
from ..types import TensorType, product


@op(aten="permute.default", numpy=lambda x, *, dims: np.transpose(x, dims), view=True)
def permute(x: Tensor, *, dims: Order):
    "The axes of x in another order: axis i of the result is axis dims[i] of x."
    return x.with_(shape=[x.shape[i] for i in dims])


@op(aten=("view.default", "reshape.default"), numpy=lambda x, *, shape: np.reshape(x, shape), view=True)
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


@op(aten="expand.default", numpy=lambda x, *, size: np.broadcast_to(x, size), view=True)
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
    return x[(slice(None),) * dim + (slice(start, end, step),)]


@op(aten="slice.Tensor", numpy=_slice, view=True)
def slice_(x: Tensor, *, dim: Axis, start: Size, end: Size, step: int = 1):
    "Elements start, start+step, ... below end along one axis; 0 <= start <= end <= size."
    if step < 1:
        raise IRError(f"step {step} is not positive")
    if not at_least(start, 0) or (isinstance(end, int) and isinstance(start, int) and end < start):
        raise IRError(f"cannot slice from {start} to {end}")
    size = x.shape[dim]
    if isinstance(end, int) and isinstance(size, int) and end > size:
        raise IRError(f"end {end} is beyond size {size}")
    shape = list(x.shape)
    shape[dim] = floordiv(end - start + step - 1, step)
    return x.with_(shape=shape)


@op(aten="cat.default", numpy=lambda *xs, dim: np.concatenate(xs, axis=dim))
def cat(*xs: Tensor, dim: Axis):
    "Tensors joined along one axis."
    from ..types import promote

    total: Dim = 0
    for x in xs:
        total = total + x.shape[dim]
        if x.rank != xs[0].rank or any(
            a != b for i, (a, b) in enumerate(zip(x.shape, xs[0].shape, strict=True)) if i != dim
        ):
            raise IRError("the axes that are not joined differ")
    shape = list(xs[0].shape)
    shape[dim] = total
    return TensorType(promote(*xs), tuple(shape))
