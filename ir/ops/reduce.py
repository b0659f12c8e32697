"""Combining elements along axes."""

from typing import Any

import numpy as np

from ..attributes import Axes, Axis
from ..declare import Float, Tensor, op
from ..dims import Dim
from ..types import DType, TensorType


def reduced(x: TensorType, dim: tuple[int, ...], keepdim: bool) -> tuple[Dim, ...]:
    """The shape after reducing `dim`; an empty `dim` means every axis."""
    axes = dim or tuple(range(x.rank))
    if keepdim:
        return tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    return tuple(d for i, d in enumerate(x.shape) if i not in axes)


def over(function: Any) -> Any:
    """A numpy reduction with our attribute names."""
    return lambda x, *, dim, keepdim=False, **rest: function(
        x, axis=dim or tuple(range(x.ndim)), keepdims=keepdim, **rest
    )


@op(aten="mean.dim", numpy=over(np.mean), flops=lambda x, **_: x.size)
def mean(x: Float, *, dim: Axes = (), keepdim: bool = False):
    "The mean along axes (all when none is given)."
    return x.with_(shape=reduced(x, dim, keepdim))


@op(aten="amax.default", numpy=over(np.max), flops=lambda x, **_: x.size)
def amax(x: Tensor, *, dim: Axes = (), keepdim: bool = False):
    "The maximum along axes (all when none is given); NaN wins."
    return x.with_(shape=reduced(x, dim, keepdim))


@op(aten="sum.dim_IntList", numpy=lambda x, *, dim, keepdim, dtype: over(np.sum)(x, dim=dim, keepdim=keepdim),
    flops=lambda x, **_: x.size)  # fmt: skip
def sum_(x: Tensor, *, dim: Axes = (), keepdim: bool = False, dtype: DType | None = None):
    "The sum along axes (all when none is given); integers and bools sum to i64."
    from ..types import i64

    result = dtype or (i64 if x.dtype.kind in "bui" else x.dtype)
    return x.with_(shape=reduced(x, dim, keepdim), dtype=result)


@op(aten="cumsum.default", numpy=lambda x, *, dim, dtype: np.cumsum(x, axis=dim) if x.ndim else x)
def cumsum(x: Tensor, *, dim: Axis, dtype: DType | None = None):
    "Running sums along one axis; integers and bools sum to i64."
    from ..types import i64

    return x.with_(dtype=dtype or (i64 if x.dtype.kind in "bui" else x.dtype))
