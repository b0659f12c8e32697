"""Convolution and pooling of tokens, along the sequence and over a grid; resizing of tables over one.

A grid is the sizes (H, W) that tokens [b, h, n, d] are laid out on, row by row, after `before` class
and register tokens. A channel is one feature of one head: there are h * d.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....ir import IRError, Value
from ....ir.dims import Dim
from ....ir.ops.activation import as_dtype, wide
from ....ir.ops.attention import swap
from ....ir.ops.conv import convolution
from ....ir.ops.elementwise import abs_, maximum, minimum, relu
from ....ir.ops.graph import size as dim_size
from ....ir.ops.index import arange
from ....ir.ops.linear import matmul
from ....ir.ops.pool import adaptive_avg_pool2d
from ....ir.ops.shape import pad, permute, reshape, slice_
from ....ir.types import DType, i64, product
from .order import joined_to, split
from .parts import earlier, kept, zeros


def token_conv(x: Value, w: Value, *, causal: bool = False, bias: Value | None = None,
               padding: Value | None = None, segments: Value | None = None) -> Value:  # fmt: skip
    """Depthwise convolution along the tokens of x [b, h, n, d] with w [h, d or 1, width]; n stays.

        y_t = sum_i w_i x_(t - width + 1 + i)     causal
        y_t = sum_i w_i x_(t - width // 2 + i)    centred

    with zeros beyond the ends, at padded tokens and, where causal, at tokens that have another number of
    segments [b, n]. bias: [h, d] or [h, 1]. w of d = 1 serves all
    features of a head (Nystromformer: h kernels of 33).
    """
    (b, h, n, d), (many, each, width) = x.shape, w.shape
    if many != h or each not in (1, d):
        raise IRError(f"w is {w.type}: x has {h} heads of {d} features")
    y = kept(x, padding)
    if segments is not None:
        if not causal or not isinstance(width, int):
            raise IRError("sequences packed in a row: kept apart by a causal convolution of known width only")
        taps = reshape(as_dtype(w, y.dtype), shape=(h, 1, each, width))
        x = y
        for lag in range(width):
            part = earlier(x, lag, segments) * _tap(taps, width - 1 - lag)
            y = part if lag == 0 else y + part
        return y if bias is None else y + reshape(as_dtype(bias, y.dtype), shape=(h, 1, bias.shape[1]))
    shared = each != d
    y = permute(y, dims=(0, 3, 1, 2) if shared else (0, 1, 3, 2))
    y = reshape(y, shape=(b * d, h, n) if shared else (b, h * d, n))
    front = width - 1 if causal else width // 2
    y = pad(y, pad=(front, width - 1 - front), value=0.0)
    y = convolution(y, reshape(as_dtype(w, y.dtype), shape=(many * each, 1, width)), stride=(1,),
                    padding=(0,), dilation=(1,), output_padding=(0,), groups=many * each)  # fmt: skip
    y = reshape(y, shape=(b, d, h, n) if shared else (b, h, d, n))
    y = permute(y, dims=(0, 2, 3, 1) if shared else (0, 1, 3, 2))
    return y if bias is None else y + reshape(as_dtype(bias, y.dtype), shape=(h, 1, each))


def _tap(w: Value, i: int) -> Value:
    """w [h, 1, d, width] at one of its tokens, [h, 1, d]."""
    return reshape(slice_(w, dim=3, start=i, end=i + 1), shape=w.shape[:3])


def to_map(x: Value, grid: Sequence[Dim]) -> Value:
    """Tokens [b, h, H * W, d] as a map [b, h * d, H, W]."""
    b, h, n, d = x.shape
    if product(grid) != n or len(grid) != 2:
        raise IRError(f"{n} tokens do not lie on a grid of {tuple(grid)}")
    return reshape(permute(x, dims=(0, 1, 3, 2)), shape=(b, h * d, *grid))


def from_map(x: Value, h: Dim) -> Value:
    """A map [b, h * d, H, W] as tokens [b, h, H * W, d]."""
    b, many, rows, columns = x.shape
    return permute(reshape(x, shape=(b, h, many // h, rows * columns)), dims=(0, 1, 3, 2))


def grid_conv(
    x: Value, w: Value, grid: Sequence[Dim], *, bias: Value | None = None, before: int = 0
) -> Value:
    """Depthwise convolution of x [b, h, n, d] over the grid with w [h * d or d, kh, kw], odd sizes; n stays.

    w of d kernels serves every head (SLAB, arXiv:2405.11582); bias has as many entries. The
    `before` tokens get 0.
    """
    first, patches = split(x, before)
    (b, h, n, d), (many, kh, kw) = patches.shape, w.shape
    if many not in (d, h * d) or kh % 2 == 0 or kw % 2 == 0:
        raise IRError(f"w is {w.type}: {d} or {h * d} kernels of odd sizes are wanted")
    if many == d:
        patches = reshape(patches, shape=(b * h, 1, n, d))
    y = convolution(
        to_map(patches, grid), reshape(as_dtype(w, x.dtype), shape=(many, 1, kh, kw)),
        None if bias is None else as_dtype(bias, x.dtype), stride=(1, 1), padding=(kh // 2, kw // 2),
        dilation=(1, 1), output_padding=(0, 0), groups=many,
    )  # fmt: skip
    y = reshape(from_map(y, patches.shape[1]), shape=(b, h, n, d))
    return y if first is None else joined_to(zeros(x.dtype, b, h, before, d), y)


def dynamic_conv(x: Value, w: Value, grid: Sequence[Dim], *, before: int = 0) -> Value:
    """`grid_conv` with kernels w [b, h, d, kh, kw] of each sample: InLine attention (arXiv:2412.06590)."""
    first, patches = split(x, before)
    (b, h, _, d), (kh, kw) = patches.shape, w.shape[3:]
    if w.shape[:3] != (b, h, d) or not isinstance(kh, int) or not isinstance(kw, int) or not kh * kw % 2:
        raise IRError(f"w is {w.type}: [{b},{h},{d}] kernels of odd sizes are wanted")
    rows, columns = grid
    y = pad(to_map(patches, grid), pad=(kw // 2, kw // 2, kh // 2, kh // 2), value=0.0)
    kernel = as_dtype(reshape(w, shape=(b, h * d, kh, kw)), x.dtype)
    total: Value | None = None
    for i in range(kh):
        line = slice_(y, dim=2, start=i, end=i + rows)
        row = slice_(kernel, dim=2, start=i, end=i + 1)
        for j in range(kw):
            term = slice_(line, dim=3, start=j, end=j + columns) * slice_(row, dim=3, start=j, end=j + 1)
            total = term if total is None else total + term
    assert total is not None
    y = from_map(total, h)
    return y if first is None else joined_to(zeros(x.dtype, b, h, before, d), y)


def grid_pool(x: Value, grid: Sequence[Dim], output: Sequence[int], *, before: int = 0) -> Value:
    """Means of x [b, h, n, d] over `output` nearly equal windows of the grid: [b, h, H' * W', d].

    The agents of Agent Attention (arXiv:2312.08874). The `before` tokens are in no window.
    """
    _, x = split(x, before)
    return from_map(adaptive_avg_pool2d(to_map(x, grid), output_size=tuple(output)), x.shape[1])


def resized(x: Value, output: Sequence[Dim]) -> Value:
    """x [..., H, W] resampled bilinearly to [..., H', W'], corners not aligned, as torch's interpolate."""
    rows, columns = (_hats(a, b, wide(x).dtype) for a, b in zip(x.shape[-2:], output, strict=True))
    return as_dtype(matmul(matmul(rows, wide(x)), swap(columns)), x.dtype)


def _hats(size: Dim, output: Dim, dtype: DType) -> Value:
    """[output, size], the weights of linear interpolation: 1 - |source - j| where that is positive."""
    place = as_dtype(arange(start=0, end=output, dtype=i64), dtype)
    source = (place + 0.5) * _number(size, dtype) / _number(output, dtype) - 0.5
    source = minimum(maximum(source, 0.0), _number(size - 1, dtype))
    j = as_dtype(arange(start=0, end=size, dtype=i64), dtype)
    return relu(1.0 - abs_(reshape(source, shape=(output, 1)) - j))


def _number(dim: Dim, dtype: DType) -> float | Value:
    return float(dim) if isinstance(dim, int) else as_dtype(dim_size(value=dim, dtype=i64), dtype)
