"""Combining elements along axes."""

from typing import Any

import numpy as np

from ..attributes import Axes, Axis, Number, Size
from ..declare import Arithmetic, Boolean, Float, Ordered, Real, RealNumeric, composite, op
from ..dims import Dim, at_least
from ..errors import IRError
from ..types import DTYPES, DType, TensorType, i64
from . import elementwise


def reduced(x: TensorType, dim: tuple[int, ...], keepdim: bool) -> tuple[Dim, ...]:
    """The shape after reducing `dim`; an empty `dim` means every axis."""
    axes = dim or tuple(range(x.rank))
    if keepdim:
        return tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    return tuple(d for i, d in enumerate(x.shape) if i not in axes)


def along(x: TensorType, dim: int | None, keepdim: bool) -> tuple[Dim, ...]:
    """The shape after reducing one axis; None means every axis."""
    return reduced(x, () if dim is None or not x.rank else (dim,), keepdim)


def over(function: Any) -> Any:
    """A numpy reduction with our attribute names."""
    return lambda x, *, dim, keepdim=False, **rest: function(
        x, axis=dim or tuple(range(x.ndim)), keepdims=keepdim, **rest
    )


def _first(function: Any) -> Any:
    """A numpy reduction over one axis or all, on integers in i64."""

    def reduce(x: np.ndarray, *, dim: int | None, keepdim: bool = False, dtype: DType | None = None):
        x = _summand(x, dtype)
        axis = tuple(range(x.ndim)) if dim is None or not x.ndim else dim
        return function(x, axis=axis, keepdims=keepdim)

    return reduce


def _summand(x: np.ndarray, dtype: DType | None) -> np.ndarray:
    """x as it is accumulated: cast to `dtype`, else integers and bools to i64."""
    if dtype is not None:
        return x.astype(dtype.numpy)
    return x.astype(np.int64) if x.dtype.kind in "bui" else x


def _accumulated(x: TensorType, dtype: DType | None) -> DType:
    return dtype or (i64 if x.dtype.kind in "bui" else x.dtype)


@op(aten=("mean.dim", "mean.default"), numpy=over(np.mean), flops=lambda x, **_: x.size)
def mean(x: Float, *, dim: Axes = (), keepdim: bool = False):
    "The mean along axes (all when none is given)."
    return x.with_(shape=reduced(x, dim, keepdim))


@op(aten=("amax.default", "max.default"), numpy=over(np.max), flops=lambda x, **_: x.size)
def amax(x: Ordered, *, dim: Axes = (), keepdim: bool = False):
    "The maximum along axes (all when none is given); NaN wins."
    return x.with_(shape=reduced(_some(x, dim), dim, keepdim))


@op(aten=("amin.default", "min.default"), numpy=over(np.min), flops=lambda x, **_: x.size)
def amin(x: Ordered, *, dim: Axes = (), keepdim: bool = False):
    "The minimum along axes (all when none is given); NaN wins."
    return x.with_(shape=reduced(_some(x, dim), dim, keepdim))


def _some(x: TensorType, dim: tuple[int, ...]) -> TensorType:
    if any(x.shape[i] == 0 for i in dim or range(x.rank)):
        raise IRError(f"{x} has no element to take along axes {dim}")
    return x


def _sum(x: np.ndarray, *, dim: tuple[int, ...], keepdim: bool, dtype: DType | None) -> np.ndarray:
    return over(np.sum)(_summand(x, dtype), dim=dim, keepdim=keepdim)


@op(aten=("sum.dim_IntList", "sum.default"), numpy=_sum, flops=lambda x, **_: x.size)
def sum_(x: Arithmetic, *, dim: Axes = (), keepdim: bool = False, dtype: DType | None = None):
    "The sum along axes (all when none is given); integers and bools sum to i64."
    return x.with_(shape=reduced(x, dim, keepdim), dtype=_accumulated(x, dtype))


@op(aten=("prod.dim_int", "prod.default"), numpy=_first(np.prod), flops=lambda x, **_: x.size)
def prod(x: Arithmetic, *, dim: Axis | None = None, keepdim: bool = False, dtype: DType | None = None):
    "The product along one axis, or of all; integers and bools multiply to i64."
    return x.with_(shape=along(x, dim, keepdim), dtype=_accumulated(x, dtype))


@op(aten=("any.dims", "any.dim", "any.default"), numpy=over(np.any), flops=lambda x, **_: x.size)
def any_(x: Boolean, *, dim: Axes = (), keepdim: bool = False):
    "Whether any element along axes holds."
    return x.with_(shape=reduced(x, dim, keepdim))


@op(aten=("all.dims", "all.dim", "all.default"), numpy=over(np.all), flops=lambda x, **_: x.size)
def all_(x: Boolean, *, dim: Axes = (), keepdim: bool = False):
    "Whether every element along axes holds."
    return x.with_(shape=reduced(x, dim, keepdim))


def _place(function: Any) -> Any:
    def find(x: np.ndarray, *, dim: int | None, keepdim: bool) -> np.ndarray:
        if dim is None or not x.ndim:
            return np.reshape(function(x), (1,) * x.ndim if keepdim else ())
        return function(x, axis=dim, keepdims=keepdim)

    return find


@op(aten="argmax.default", numpy=_place(np.argmax), flops=lambda x, **_: x.size)
def argmax(x: RealNumeric, *, dim: Axis | None = None, keepdim: bool = False):
    "The place of the first maximum along an axis, or in x flattened."
    _some(x, () if dim is None else (dim,) * (x.rank > 0))
    return TensorType(i64, along(x, dim, keepdim))


@op(aten="argmin.default", numpy=_place(np.argmin), flops=lambda x, **_: x.size)
def argmin(x: RealNumeric, *, dim: Axis | None = None, keepdim: bool = False):
    "The place of the first minimum along an axis, or in x flattened."
    _some(x, () if dim is None else (dim,) * (x.rank > 0))
    return TensorType(i64, along(x, dim, keepdim))


def _var(x: np.ndarray, *, dim: tuple[int, ...], correction: float, keepdim: bool) -> np.ndarray:
    centred = x - over(np.mean)(x, dim=dim, keepdim=True)
    total = over(np.sum)(np.abs(centred) ** 2, dim=dim, keepdim=keepdim)
    count = int(np.prod([x.shape[i] for i in dim or range(x.ndim)]))
    return total / np.float64(max(0, count - correction))


@op(aten="var.correction", numpy=_var, flops=lambda x, **_: 3 * x.size)
def var(x: Float, *, dim: Axes = (), correction: Number = 1, keepdim: bool = False):
    "Squared distance from the mean along axes, summed and divided by count - correction."
    real = x.dtype if x.dtype.is_float else DTYPES[f"f{x.dtype.bits // 2}"]
    return x.with_(shape=reduced(x, dim, keepdim), dtype=real)


@composite(aten="std.correction")
def std(x: Float, *, dim: Axes = (), correction: Number = 1, keepdim: bool = False):
    "The square root of the variance along axes."
    return elementwise.sqrt(var(x, dim=dim, correction=correction, keepdim=keepdim))


def _scan(function: Any) -> Any:
    def run(x: np.ndarray, *, dim: int, dtype: DType | None = None) -> np.ndarray:
        x = _summand(x, dtype)
        return function(x, axis=dim) if x.ndim else x

    return run


@op(aten="cumsum.default", numpy=_scan(np.cumsum))
def cumsum(x: Arithmetic, *, dim: Axis, dtype: DType | None = None):
    "Running sums along one axis; integers and bools sum to i64."
    return x.with_(dtype=_accumulated(x, dtype))


@op(aten="cumprod.default", numpy=_scan(np.cumprod))
def cumprod(x: Arithmetic, *, dim: Axis, dtype: DType | None = None):
    "Running products along one axis; integers and bools multiply to i64."
    return x.with_(dtype=_accumulated(x, dtype))


@op(aten="logcumsumexp.default", numpy=_scan(np.logaddexp.accumulate))
def logcumsumexp(x: Real, *, dim: Axis):
    "The logarithm of running sums of exponentials along one axis, without overflow."
    return x


def _logsumexp(x: np.ndarray, *, dim: tuple[int, ...], keepdim: bool) -> np.ndarray:
    if not x.size:
        return over(np.sum)(x, dim=dim, keepdim=keepdim) - np.inf
    high = over(np.max)(x, dim=dim, keepdim=True)
    high = np.where(np.isfinite(high), high, 0)
    total = np.log(over(np.sum)(np.exp(x - high), dim=dim, keepdim=True)) + high
    return total if keepdim else np.reshape(total, over(np.sum)(x, dim=dim).shape)


@op(aten="logsumexp.default", numpy=_logsumexp, flops=lambda x, **_: 3 * x.size)
def logsumexp(x: Real, *, dim: Axes, keepdim: bool = False):
    "The logarithm of the sum of exponentials along axes, without overflow."
    return x.with_(shape=reduced(x, dim, keepdim))


def _norm(x: np.ndarray, *, ord: float, dim: tuple[int, ...], keepdim: bool) -> np.ndarray:
    size = np.abs(x)
    if ord == 0:
        return over(np.sum)((size != 0).astype(float), dim=dim, keepdim=keepdim)
    if np.isinf(ord):
        return over(np.max if ord > 0 else np.min)(size, dim=dim, keepdim=keepdim)
    return over(np.sum)(size**ord, dim=dim, keepdim=keepdim) ** (1 / ord)


@op(aten="linalg_vector_norm.default", numpy=_norm, flops=lambda x, **_: 2 * x.size)
def vector_norm(x: Float, *, ord: Number = 2, dim: Axes = (), keepdim: bool = False):
    "(sum |x|^ord)^(1/ord) along axes; the largest for inf, the smallest for -inf, a count for 0."
    if ord < 0 or ord == float("inf"):
        _some(x, dim)
    real = x.dtype if x.dtype.is_float else DTYPES[f"f{x.dtype.bits // 2}"]
    return x.with_(shape=reduced(x, dim, keepdim), dtype=real)


def _order(x: np.ndarray, dim: int, descending: bool) -> np.ndarray:
    if descending:  # stable: the reversed order of the reversed array
        return x.shape[dim] - 1 - np.flip(np.argsort(np.flip(x, dim), axis=dim, kind="stable"), dim)
    return np.argsort(x, axis=dim, kind="stable")


def _sorted(x: np.ndarray, *, dim: int, descending: bool, stable: bool = True) -> tuple[Any, Any]:
    if not x.ndim:
        return x, np.zeros((), np.int64)
    order = _order(x, dim, descending)
    return np.take_along_axis(x, order, dim), order


@op(aten=("sort.stable", "sort.default"), numpy=_sorted)
def sort(x: Ordered, *, stable: bool | None = None, dim: Axis = -1, descending: bool = False):
    "x sorted along one axis, and the place each element came from; NaN counts as largest."
    return x, x.with_(dtype=i64)


def _topk(x: np.ndarray, *, k: int, dim: int, largest: bool, sorted: bool) -> tuple[Any, Any]:
    values, order = _sorted(x, dim=dim, descending=largest)
    cut = (slice(None),) * dim + (slice(0, k),) if x.ndim else ()
    return values[cut], order[cut]


@op(aten="topk.default", numpy=_topk)
def topk(x: Ordered, *, k: Size, dim: Axis = -1, largest: bool = True, sorted: bool = True):
    "The k largest (or smallest) along one axis, in order, and their places; ties in any order."
    if not x.rank:
        return x, x.with_(dtype=i64)
    if at_least(k - x.shape[dim], 1) or at_least(-k, 1):
        raise IRError(f"there are no {k} among {x.shape[dim]}")
    shape = tuple(k if i == dim else d for i, d in enumerate(x.shape))
    return x.with_(shape=shape), TensorType(i64, shape)
