"""How views lie in memory: the strides, in elements, that torch would give them, without any tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .ir import Dim, Op


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of a dense tensor in the order of its axes."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def viewed(
    op: Op, shape: Sequence[int], strides: Sequence[int], at: Callable[[Dim], int]
) -> tuple[int, ...] | None:
    """The strides of a view; None where there are none, so that it copies."""
    if op.name == "permute":
        return tuple(strides[i] for i in op.attrs["dims"])
    if op.name == "slice":
        return tuple(s * (op.attrs["step"] if i == op.attrs["dim"] else 1) for i, s in enumerate(strides))
    if op.name == "expand":
        new = [at(dim) for dim in op.types[0].shape]
        lead = len(new) - len(shape)
        return (0,) * lead + tuple(
            s if size == new[lead + i] else 0 for i, (s, size) in enumerate(zip(strides, shape))
        )
    if op.name == "reshape":
        return _reshaped(shape, strides, [at(dim) for dim in op.types[0].shape])
    if op.name == "unfold":
        axis, step = op.attrs["dimension"], at(op.attrs["step"])
        return (*(s * step if i == axis else s for i, s in enumerate(strides)), strides[axis])
    return contiguous([at(dim) for dim in op.types[0].shape])


def _reshaped(shape: Sequence[int], strides: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """The strides of a reshape, by torch's rule: axes that are split or joined must lie evenly."""
    if math.prod(shape) == 0:
        return contiguous(new)
    runs: list[list[int]] = []  # [size, stride of its last axis] of axes that can be joined
    for size, stride in zip(shape, strides):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = [runs[-1][0] * size, stride]
        else:
            runs.append([size, stride])
    found, left, step = [], 1, 1
    for size in reversed(new):
        if size == 1:
            found.append(step)
            continue
        if left == 1:
            left, step = runs.pop()
        if left % size:
            return None
        found.append(step)
        left, step = left // size, step * size
    return tuple(reversed(found))
