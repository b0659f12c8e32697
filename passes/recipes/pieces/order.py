"""Tokens of a grid in another order, and back: scans, windows, and frames moved in time.

A grid is the sizes (H, W) or (T, H, W) that tokens [b, h, n, d] are laid out on, row by row, after
`before` class and register tokens, which keep their places. All orders are reshapes, permutations and
flips, so that the passes after can fold them into what stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....ir import IRError, Value
from ....ir.dims import Dim, ceildiv
from ....ir.ops.elementwise import eq, remainder, where
from ....ir.ops.index import arange
from ....ir.ops.shape import cat, expand, flip, permute, reshape, slice_
from ....ir.types import i64, product
from .parts import ones, zeros

ROTARY_MAJOR = ((0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0))
"""LinGen's four scans of (T, H, W), layer i taking number i mod 4 (arXiv:2412.09856)."""


def split(x: Value, before: int) -> tuple[Value | None, Value]:
    """The first `before` tokens of x [b, h, n, d], None for none of them, and the others."""
    if not before:
        return None, x
    n = x.shape[2]
    return slice_(x, dim=2, start=0, end=before), slice_(x, dim=2, start=before, end=n)


def joined_to(first: Value | None, x: Value) -> Value:
    """What `split` took apart."""
    return x if first is None else cat(first, x, dim=2)


def scan(
    x: Value, grid: Sequence[Dim], *, axes: Sequence[int] = (), snake: bool = False,
    reverse: bool = False, before: int = 0,
) -> Value:  # fmt: skip
    """x [b, h, n, d] with its tokens in the order of another walk over the grid.

    axes: the grid's axes from the slowest to the fastest, (1, 0) for column by column. snake: every
    second line of the fastest axis backwards, so that steps go to neighbours. reverse: from the end.
    """
    axes = tuple(axes) or tuple(range(len(grid)))
    first, x = split(x, before)
    _fits(x, grid, axes)
    x = _permuted(x, grid, axes)
    if snake:
        x = _snake(x, grid[axes[-1]])
    return joined_to(first, flip(x, dims=(2,)) if reverse else x)


def unscan(
    x: Value, grid: Sequence[Dim], *, axes: Sequence[int] = (), snake: bool = False,
    reverse: bool = False, before: int = 0,
) -> Value:  # fmt: skip
    """The inverse of `scan` with the same arguments."""
    axes = tuple(axes) or tuple(range(len(grid)))
    first, x = split(x, before)
    _fits(x, grid, axes)
    x = flip(x, dims=(2,)) if reverse else x
    if snake:
        x = _snake(x, grid[axes[-1]])
    back = tuple(axes.index(i) for i in range(len(grid)))
    return joined_to(first, _permuted(x, [grid[i] for i in axes], back))


def _fits(x: Value, grid: Sequence[Dim], axes: Sequence[int]) -> None:
    if sorted(axes) != list(range(len(grid))) or product(grid) != x.shape[2]:
        raise IRError(f"{x.shape[2]} tokens on a grid of {tuple(grid)}, axes {tuple(axes)}: they do not fit")


def _permuted(x: Value, grid: Sequence[Dim], axes: Sequence[int]) -> Value:
    if list(axes) == list(range(len(grid))):
        return x
    b, h, n, d = x.shape
    x = permute(reshape(x, shape=(b, h, *grid, d)), dims=(0, 1, *(a + 2 for a in axes), len(grid) + 2))
    return reshape(x, shape=(b, h, n, d))


def _snake(x: Value, length: Dim) -> Value:
    """Every second line of `length` tokens backwards; its own inverse."""
    b, h, n, d = x.shape
    lines = n // length
    y = reshape(x, shape=(b, h, lines, length, d))
    odd = eq(remainder(arange(start=0, end=lines, dtype=i64), 2), 1)
    y = where(reshape(odd, shape=(lines, 1, 1)), flip(y, dims=(3,)), y)
    return reshape(y, shape=(b, h, n, d))


def windows(x: Value, grid: Sequence[Dim], window: Sequence[int], *, shift: Sequence[int] = (),
            before: int = 0) -> tuple[Value, Value | None]:  # fmt: skip
    """Tokens x [b, h, n, d] grouped by windows of the grid, [b * windows, h, tokens of one, d].

    shift: how far the grid is turned along each axis first, as Swin does; what meets across its edge
    is not told apart. The second result is bool [b * windows, 1, 1, tokens of one], False where a window
    hangs over the edge, None where windows fill the grid. The `before` tokens are in no window.
    """
    _, x = split(x, before)
    _fits(x, grid, range(len(grid)))
    keep = None
    if any(g % w != 0 for g, w in zip(grid, window, strict=True)):
        flat = expand(ones(x, None), size=(x.shape[0], 1, x.shape[2], 1))
        keep = _windowed(_turned(flat, grid, shift, 1), grid, window)
        keep = reshape(eq(keep, 1.0), shape=(keep.shape[0], 1, 1, keep.shape[2]))
    return _windowed(_turned(x, grid, shift, 1), grid, window), keep


def unwindows(x: Value, grid: Sequence[Dim], window: Sequence[int], *, shift: Sequence[int] = (),
              first: Value | None = None) -> Value:  # fmt: skip
    """The inverse of `windows`: [b, h, n, d], after the tokens `first` that were in no window."""
    count = tuple(ceildiv(g, w) for g, w in zip(grid, window, strict=True))
    rank, (many, h, _, d) = len(grid), x.shape
    b = many // product(count)
    x = reshape(x, shape=(b, *count, h, *window, d))
    dims = [v for i in range(rank) for v in (1 + i, 2 + rank + i)]
    x = permute(x, dims=(0, 1 + rank, *dims, 2 + 2 * rank))
    x = reshape(x, shape=(b, h, *(c * w for c, w in zip(count, window, strict=True)), d))
    for i, g in enumerate(grid):
        x = slice_(x, dim=2 + i, start=0, end=g)
    return joined_to(first, _turned(reshape(x, shape=(b, h, product(grid), d)), grid, shift, -1))


def _turned(x: Value, grid: Sequence[Dim], shift: Sequence[int], way: int) -> Value:
    """Each axis of the grid turned: token at i comes from i + way * shift."""
    if not any(shift):
        return x
    b, h, n, d = x.shape
    y = reshape(x, shape=(b, h, *grid, d))
    for i, (size, by) in enumerate(zip(grid, shift, strict=True)):
        if by:
            at = by if way > 0 else size - by
            y = cat(
                slice_(y, dim=2 + i, start=at, end=size), slice_(y, dim=2 + i, start=0, end=at), dim=2 + i
            )
    return reshape(y, shape=(b, h, n, d))


def _windowed(x: Value, grid: Sequence[Dim], window: Sequence[int]) -> Value:
    b, h, _, d = x.shape
    rank, count = len(grid), tuple(ceildiv(g, w) for g, w in zip(grid, window, strict=True))
    y = reshape(x, shape=(b, h, *grid, d))
    for i, (g, c, w) in enumerate(zip(grid, count, window, strict=True)):
        if c * w != g:
            gap = zeros(x.dtype, *y.shape[: 2 + i], c * w - g, *y.shape[3 + i :])
            y = cat(y, gap, dim=2 + i)
    y = reshape(y, shape=(b, h, *(v for pair in zip(count, window, strict=True) for v in pair), d))
    outer, inner = (2 + 2 * i for i in range(rank)), (3 + 2 * i for i in range(rank))
    y = permute(y, dims=(0, *outer, 1, *inner, 2 + 2 * rank))
    return reshape(y, shape=(b * product(count), h, product(window), d))


def temporal_shift(x: Value, frames: Dim, *, each: int, steps: Sequence[int] = (-1, 1)) -> Value:
    """x [b * frames, h, n, d] whose first groups of `each` channels come from other frames.

    Channels of all heads in order: the first `each` of frame t + steps[0], the next of t + steps[1], ...;
    with each = d these are heads. Frames without such a neighbour keep their own. ZeroI2V, of keys
    and values (arXiv:2310.01324).
    """
    many, h, n, d = x.shape
    b, wide = many // frames, h * d
    y = reshape(permute(x, dims=(0, 2, 1, 3)), shape=(b, frames, n, wide))
    parts, start = [], 0
    for step in steps:
        part = slice_(y, dim=3, start=start, end=start + each)
        parts.append(_moved(part, step))
        start += each
    y = cat(*parts, slice_(y, dim=3, start=start, end=wide), dim=3)
    return permute(reshape(y, shape=(many, n, h, d)), dims=(0, 2, 1, 3))


def _moved(x: Value, step: int) -> Value:
    """Frame t of the result is frame t + step of x [b, frames, n, c], or t where there is none."""
    frames, by = x.shape[1], abs(step)
    if not isinstance(frames, int) or by >= frames:
        raise IRError(f"a step of {step} needs more than {by} frames, given {frames}")
    if not step:
        return x
    if step < 0:
        return cat(slice_(x, dim=1, start=0, end=by), slice_(x, dim=1, start=0, end=frames - by), dim=1)
    return cat(slice_(x, dim=1, start=by, end=frames), slice_(x, dim=1, start=frames - by, end=frames), dim=1)
