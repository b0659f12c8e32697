"""Pooling over windows of the last axes, and resampling."""

import itertools
from typing import Any

import numpy as np

from ..attributes import Ints, Shape
from ..declare import Real, op
from ..dims import Dim, at_least, floordiv
from ..errors import IRError
from ..types import TensorType, i64


def _sizes(x: TensorType, n: int, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool):
    """Output sizes of windows over the last n axes."""
    if x.rank not in (n + 1, n + 2) or any(len(a) != n for a in (kernel, stride, padding, dilation)):
        raise IRError(f"x is {x}, attributes want {n} entries each")
    sizes: list[Dim] = []
    if any(d == 0 for d in x.shape[1:]):
        raise IRError(f"{x} has nothing to pool")
    for size, k, s, p, d in zip(x.shape[-n:], kernel, stride, padding, dilation):
        if k < 1 or s < 1 or d < 1 or p < 0 or 2 * p > d * (k - 1) + 1:
            raise IRError(f"window {k}, stride {s}, padding {p}, dilation {d}")
        span = size + 2 * p - d * (k - 1) - 1
        count = floordiv(span, s) + 1
        if ceil_mode:
            if not isinstance(span, int):
                raise IRError("ceil_mode of an unknown size")
            last = -(-span // s)  # a last window that would start in the padding behind is none
            count = last if last * s >= span + d * (k - 1) + 1 - p else last + 1
        if at_least(-count, 0):
            raise IRError(f"axis of size {size} is too short for windows of {k}")
        sizes.append(count)
    return sizes


def _windows(x, fill: float, sizes, kernel, stride, padding, dilation):
    """Views of padded x, one for each place in the window, and the flat index of each element."""
    n = len(sizes)
    reach = [s * (o - 1) + d * (k - 1) + 1 for s, o, d, k in zip(stride, sizes, dilation, kernel)]
    after = [max(0, r - p - length) for r, p, length in zip(reach, padding, x.shape[-n:])]
    padded = np.pad(x, [(0, 0)] * (x.ndim - n) + list(zip(padding, after)), constant_values=fill)
    for at in itertools.product(*map(range, kernel)):
        places = zip(at, dilation, stride, sizes)
        cut: Any = (..., *(slice(i * d, i * d + s * (o - 1) + 1, s) for i, d, s, o in places))
        yield padded[cut]


def _max_pool(x: np.ndarray, *, kernel_size, stride, padding, dilation, ceil_mode):
    n = len(kernel_size)
    type_ = TensorType(i64, x.shape)
    sizes = _sizes(type_, n, kernel_size, stride, padding, dilation, ceil_mode)
    places = np.broadcast_to(np.arange(np.prod(x.shape[-n:])).reshape(x.shape[-n:]), x.shape)
    low = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    window = (sizes, kernel_size, stride, padding, dilation)
    values = np.stack(list(_windows(x, low, *window)))
    indices = np.stack(list(_windows(places, -1, *window)))
    inside = np.where(indices < 0, low, values)
    best = np.argmax(np.where(indices < 0, -1, 0) + (inside == inside.max(0)) + np.isnan(inside), axis=0)
    return np.take_along_axis(values, best[None], 0)[0], np.take_along_axis(indices, best[None], 0)[0]


def _max_rule(n: int):
    def rule(x, kernel_size, stride, padding, dilation, ceil_mode):
        sizes = _sizes(x, n, kernel_size, stride, padding, dilation, ceil_mode)
        shape = (*x.shape[:-n], *sizes)
        return x.with_(shape=shape), TensorType(i64, shape)

    return rule


@op(aten="max_pool2d_with_indices.default", numpy=_max_pool)
def max_pool2d(x: Real, *, kernel_size: Ints, stride: Ints, padding: Ints = (0, 0), dilation: Ints = (1, 1),
               ceil_mode: bool = False):  # fmt: skip
    "The largest element of each window of the last two axes, and its place in them flattened."
    return _max_rule(2)(x, kernel_size, stride, padding, dilation, ceil_mode)


@op(aten="max_pool3d_with_indices.default", numpy=_max_pool)
def max_pool3d(x: Real, *, kernel_size: Ints, stride: Ints, padding: Ints = (0, 0, 0),
               dilation: Ints = (1, 1, 1), ceil_mode: bool = False):  # fmt: skip
    "The largest element of each window of the last three axes, and its place in them flattened."
    return _max_rule(3)(x, kernel_size, stride, padding, dilation, ceil_mode)


def _avg_pool(x, *, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override=None):
    n = len(kernel_size)
    ones = (1,) * n
    sizes = _sizes(TensorType(i64, x.shape), n, kernel_size, stride, padding, ones, ceil_mode)
    window = (sizes, kernel_size, stride, (0,) * n, ones)
    around = [(0, 0)] * (x.ndim - n) + [(p, p) for p in padding]
    counted = np.pad(np.ones(x.shape[-n:]), around[-n:], constant_values=float(count_include_pad))
    total = sum(_windows(np.pad(x, around), 0, *window))
    return total / (divisor_override or sum(_windows(counted, 0, *window)))


def _avg_rule(x: TensorType, n: int, kernel_size, stride, padding, ceil_mode, divisor=None) -> TensorType:
    if divisor == 0:
        raise IRError("divisor_override is 0")
    sizes = _sizes(x, n, kernel_size, stride, padding, (1,) * n, ceil_mode)
    return x.with_(shape=(*x.shape[:-n], *sizes))


@op(aten="avg_pool1d.default", numpy=_avg_pool)
def avg_pool1d(x: Real, *, kernel_size: Ints, stride: Ints, padding: Ints = (0,), ceil_mode: bool = False,
               count_include_pad: bool = True):  # fmt: skip
    "The mean of each window of the last axis."
    return _avg_rule(x, 1, kernel_size, stride, padding, ceil_mode)


@op(aten="avg_pool2d.default", numpy=_avg_pool)
def avg_pool2d(x: Real, *, kernel_size: Ints, stride: Ints, padding: Ints = (0, 0), ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None):  # fmt: skip
    "The mean of each window of the last two axes."
    return _avg_rule(x, 2, kernel_size, stride, padding, ceil_mode, divisor_override)


@op(aten="avg_pool3d.default", numpy=_avg_pool)
def avg_pool3d(x: Real, *, kernel_size: Ints, stride: Ints, padding: Ints = (0, 0, 0),
               ceil_mode: bool = False, count_include_pad: bool = True,
               divisor_override: int | None = None):  # fmt: skip
    "The mean of each window of the last three axes."
    return _avg_rule(x, 3, kernel_size, stride, padding, ceil_mode, divisor_override)


def _adaptive(x: np.ndarray, *, output_size) -> np.ndarray:
    for axis, count in enumerate(output_size, start=x.ndim - len(output_size)):
        n = x.shape[axis]
        parts = [np.take(x, range(i * n // count, -(-(i + 1) * n // count)), axis).mean(axis, keepdims=True)
                 for i in range(count)]  # fmt: skip
        x = np.concatenate(parts, axis) if parts else np.take(x, [], axis)
    return x


def _adaptive_rule(x: TensorType, output_size: Shape, n: int) -> TensorType:
    if x.rank not in (n + 1, n + 2) or len(output_size) != n or any(at_least(-o, 1) for o in output_size):
        raise IRError(f"cannot pool {x} to {output_size}")
    if any(d == 0 for d in x.shape[1 - x.rank :]):
        raise IRError(f"{x} has nothing to pool")
    return x.with_(shape=(*x.shape[:-n], *output_size))


@op(aten="adaptive_avg_pool1d.default", numpy=_adaptive)
def adaptive_avg_pool1d(x: Real, *, output_size: Shape):
    "Means of the last axis cut into output_size nearly equal windows."
    return _adaptive_rule(x, output_size, 1)


@op(aten=("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default"), numpy=_adaptive)
def adaptive_avg_pool2d(x: Real, *, output_size: Shape):
    "Means of the last two axes cut into output_size nearly equal windows."
    return _adaptive_rule(x, output_size, 2)


@op(aten=("adaptive_avg_pool3d.default", "_adaptive_avg_pool3d.default"), numpy=_adaptive)
def adaptive_avg_pool3d(x: Real, *, output_size: Shape):
    "Means of the last three axes cut into output_size nearly equal windows."
    return _adaptive_rule(x, output_size, 3)
