"""Constant tensors as ops: numbers, positions and triangles, so that passes can see what they are.

Weights are names in a graph and their data is outside it, so a causal mask that a model keeps in a
buffer (GPT-Neo, ImageGPT, nanoGPT) tells nothing. A tensor that equals what a few ops give, element
for element, is written as those ops. Sound for what is no state of the model: lifted constants, and
buffers outside the state_dict that no forward pass writes. The optimised module refuses a call once
such a buffer was written to.
"""

from __future__ import annotations

import math

import torch

from ..ir import OPS, TensorType, Value
from ..ir.ops.index import arange
from ..ir.ops.shape import expand, reshape, tril, triu

LARGEST = 1 << 26
"""Elements of the largest tensor that is looked at."""


def literal(tensor: torch.Tensor, type: TensorType) -> Value | None:
    """Ops that give exactly this tensor, or None: one number, an arithmetic series, a band of ones."""
    real = not tensor.is_complex() and tensor.layout is torch.strided and not tensor.requires_grad
    if not real or type.dtype.kind not in "buif" or tensor.is_meta or not 0 < tensor.numel() <= LARGEST:
        return None
    data = tensor.detach()
    return _number(data, type) or _series(data, type) or _band(data, type)


def _number(data: torch.Tensor, type: TensorType) -> Value | None:
    first = data.flatten()[0].item()
    if math.isnan(first) or not bool((data == first).all()) or (first == 0 and _negative_zero(data)):
        return None
    value = OPS["const"](value=first, dtype=type.dtype)
    return expand(value, size=type.shape) if type.rank else value


def _negative_zero(data: torch.Tensor) -> bool:
    return data.is_floating_point() and bool(torch.signbit(data).any())


def _series(data: torch.Tensor, type: TensorType) -> Value | None:
    """start, start + step, ... along the one axis that is longer than 1."""
    if type.dtype.kind != "i" or max(data.shape) != data.numel():
        return None
    flat = data.flatten().long()
    start, step = int(flat[0]), int(flat[1] - flat[0])
    if step == 0 or not bool((flat.diff() == step).all()):
        return None
    series = arange(start=start, end=start + step * len(flat), step=step, dtype=type.dtype)
    return series if series.shape == type.shape else reshape(series, shape=type.shape)


def _band(data: torch.Tensor, type: TensorType) -> Value | None:
    """Ones from one diagonal of the last two axes to another, zeros elsewhere."""
    if data.dim() < 2 or math.prod(data.shape[:-2]) != 1 or _negative_zero(data):
        return None
    matrix = data.reshape(data.shape[-2:])
    n, m = matrix.shape
    rows, places = (matrix != 0).int(), torch.arange(n, device=data.device)
    some = rows.any(1)
    first = (rows.argmax(1) - places)[some]
    last = (m - 1 - rows.flip(1).argmax(1) - places)[some]
    low, high = int(first.min()), int(last.max())
    ones = torch.ones_like(matrix)
    if not torch.equal(ones.tril(high).triu(low), matrix):
        return None
    value = expand(OPS["const"](value=ones[0, 0].item(), dtype=type.dtype), size=(n, m))
    value = tril(value, diagonal=high) if high < m - 1 else value
    value = triu(value, diagonal=low) if low > 1 - n else value
    return value if value.shape == type.shape else reshape(value, shape=type.shape)
