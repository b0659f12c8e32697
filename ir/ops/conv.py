"""Convolution, and the normalisations of channels."""

import itertools
from typing import Any

import numpy as np

from ..attributes import Ints, Shape, Size
from ..declare import Real, composite, op
from ..dims import Dim, at_least, floordiv
from ..errors import IRError
from ..types import product
from . import elementwise as e
from . import shape
from .activation import as_dtype, wide
from .linear import one_dtype
from .norm import layer_norm


def _convolved(x, w, b=None, *, stride, padding, dilation, transposed, output_padding, groups):
    spatial = x.ndim - 2
    if transposed:  # spread x out, then convolve with the flipped kernel
        spread = ((n - 1) * s + 1 if n else 0 for n, s in zip(x.shape[2:], stride))
        apart: Any = np.zeros((*x.shape[:2], *spread), x.dtype)
        apart[(..., *(slice(None, None, s) for s in stride))] = x
        reach = [d * (k - 1) for d, k in zip(dilation, w.shape[2:])]
        around = [(r - p, r - p + o) for r, p, o in zip(reach, padding, output_padding)]
        w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:]).swapaxes(1, 2)
        w = np.flip(w.reshape(-1, *w.shape[2:]), tuple(range(2, spatial + 2)))
        x, stride = apart, (1,) * spatial
    else:
        around = [(p, p) for p in padding]
    x = np.pad(x, [(0, 0), (0, 0), *((max(a, 0), max(c, 0)) for a, c in around)])
    x = x[(..., *(slice(max(-a, 0), n - max(-c, 0)) for (a, c), n in zip(around, x.shape[2:])))]
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(x.shape[2:], dilation, w.shape[2:], stride)]
    out = np.zeros((x.shape[0], w.shape[0], *sizes), np.result_type(x, w))
    xs, ws, outs = np.split(x, groups, 1), np.split(w, groups, 0), np.split(out, groups, 1)
    for at in itertools.product(*map(range, w.shape[2:])):  # one place of the kernel after another
        places = zip(at, dilation, stride, sizes)
        cut: Any = (..., *(slice(i * d, i * d + s * (n - 1) + 1, s) for i, d, s, n in places))
        point: Any = (..., *at)
        for block, kernel, part in zip(xs, ws, outs):
            part += np.moveaxis(np.tensordot(kernel[point], block[cut], (1, 1)), 0, 1)
    return out if b is None else out + b.reshape(-1, *(1,) * spatial)


def _flops(x, w, b=None, *, stride, padding, dilation, transposed, output_padding, groups) -> Dim:
    out = convolution.infer(x, w, b, stride=stride, padding=padding, dilation=dilation,
                            transposed=transposed, output_padding=output_padding, groups=groups)  # fmt: skip
    small = x if transposed else out
    return 2 * product(small.shape[2:]) * x.shape[0] * w.size


@op(aten="convolution.default", numpy=_convolved, flops=_flops)
def convolution(x: Real, w: Real, b: Real | None = None, *, stride: Ints, padding: Shape, dilation: Ints,
                transposed: bool = False, output_padding: Ints, groups: int = 1):  # fmt: skip
    """Cross-correlation of x [b, in, ...] with w [out, in / groups, ...] over the last axes, plus b.

    transposed: the gradient of that with respect to its x; w is [in, out / groups, ...].
    """
    one_dtype(x, w, b)
    n = x.rank - 2
    if n < 1 or w.rank != x.rank or any(len(a) != n for a in (stride, padding, dilation, output_padding)):
        raise IRError(f"x is {x}, w is {w}: attributes want one entry for each of the last axes")
    if min(stride) < 1 or min(dilation) < 1 or groups < 1 or any(at_least(-p, 1) for p in padding):
        raise IRError("stride, dilation and groups are positive, padding is not negative")
    into, out = (w.shape[1] * groups, w.shape[0]) if not transposed else (w.shape[0], w.shape[1] * groups)
    if x.shape[1] != into or not _divides(groups, w.shape[0]):
        raise IRError(f"x is {x}, w is {w}: channels do not fit {groups} groups")
    if b is not None and b.shape != (out,):
        raise IRError(f"bias is {b}, w gives {out} channels")
    if any(k == 0 for k in w.shape[2:]):
        raise IRError(f"w is {w}: the kernel has no element")
    sizes = []
    for size, k, s, p, d, o in zip(x.shape[2:], w.shape[2:], stride, padding, dilation, output_padding):
        reach = d * (k - 1) + 1
        if transposed:
            if o < 0 or o >= max(s, d):
                raise IRError(f"output_padding {o} is not below stride {s} or dilation {d}")
            sizes.append((size - 1) * s - 2 * p + reach + o)
        else:
            sizes.append(floordiv(size + 2 * p - reach, s) + 1)
        if at_least(-sizes[-1], 0):
            raise IRError(f"axis of size {size} is too short for a kernel that reaches {reach}")
    return x.with_(shape=(x.shape[0], out, *sizes))


def _divides(groups: Dim, channels: Dim) -> bool:
    return floordiv(channels, groups) * groups == channels


@composite
def batch_norm(x: Real, w: Real | None, b: Real | None, mean: Real, var: Real, *, eps: float):
    "(x - mean) / sqrt(var + eps) * w + b for each channel (axis 1), with known mean and var."
    if x.rank < 2 or any(t is not None and t.shape != x.shape[1:2] for t in (w, b, mean, var)):
        raise IRError(f"statistics do not fit the channels of {x.type}")

    def channel(t):
        return shape.reshape(wide(t), shape=(-1, *(1,) * (x.rank - 2)))

    y = (wide(x) - channel(mean)) * channel(e.rsqrt(wide(var) + eps))
    y = y if w is None else y * channel(w)
    y = y if b is None else y + channel(b)
    return as_dtype(y, x.dtype)


@composite(aten="group_norm.default")
def group_norm(x: Real, w: Real | None = None, b: Real | None = None, *, num_groups: Size,
               eps: float = 1e-5):  # fmt: skip
    "Layer norm of each group of channels (axis 1), then one scale and shift for each channel."
    if x.rank < 2 or any(t is not None and t.shape != x.shape[1:2] for t in (w, b)):
        raise IRError(f"scale and shift do not fit the channels of {x.type}")
    each = floordiv(x.type.size, x.shape[0] * num_groups) if 0 not in x.shape else 0
    if each == 0 or not _divides(num_groups, x.shape[1]):
        raise IRError(f"{x.type} has no {num_groups} groups")
    flat = shape.reshape(wide(x), shape=(x.shape[0], num_groups, each))
    y = shape.reshape(layer_norm(flat, normalized_shape=(each,), eps=eps), shape=x.shape)
    channel = (-1, *(1,) * (x.rank - 2))
    y = y if w is None else y * shape.reshape(wide(w), shape=channel)
    y = y if b is None else y + shape.reshape(wide(b), shape=channel)
    return as_dtype(y, x.dtype)
