"""Exact softmax within windows of a grid, class tokens attended by all and to all."""

from __future__ import annotations

from collections.abc import Sequence

from ....ir import OPS, RecipeError, Value
from ....ir.dims import Dim
from ....ir.ops.activation import as_dtype
from ....ir.ops.elementwise import eq, lt, remainder, where
from ....ir.ops.index import arange, index_select
from ....ir.ops.shape import cat, expand, permute, reshape, slice_
from ....ir.types import i64, product
from ..recipe import Mixing
from .order import split, unwindows, windows
from .parts import LOWEST, Part, few, joined, normalised, zeros


def sizes(site: Mixing) -> tuple[int, ...]:
    """The grid in numbers. Raises RecipeError where it is not known in numbers."""
    if not all(isinstance(g, int) for g in site.grid):
        raise RecipeError(f"a grid of {site.grid}: its sizes have to be numbers")
    return tuple(g for g in site.grid if isinstance(g, int))


def coordinates(grid: Sequence[int]) -> list[Value]:
    """For each axis of the grid the coordinate of its tokens, i64[n]."""
    place, found, inner = arange(start=0, end=product(grid), dtype=i64), [], product(grid)
    for g in grid:
        inner //= g
        found.append(remainder(OPS["div"](place, inner, rounding_mode="floor"), g))
    return found


def tiled(
    q: Value, k: Value, v: Value, site: Mixing, window: Sequence[int], *, shifted: bool = False,
    bias: str = "", grid: Sequence[int] = (),
) -> Value:  # fmt: skip
    """Each token of the grid attends to its window and to the tokens before the grid; those attend to all.

    q [b, h, n, d], k [b, g, n, d], v [b, g, n, e] to [b, h, n, e] in f32 or wider; cost n * window. A window
    is no larger than the grid. shifted: by half a window, what meets across the edge kept apart (Swin,
    arXiv:2103.14030). bias: the name of a learned score for each relative position in a window and head,
    [(2 w - 1) .., h], from 0. grid: the site's by default.
    """
    grid = tuple(grid) or sizes(site)
    window = [min(w, g) for w, g in zip(window, grid, strict=True)]
    shift = [w // 2 if shifted and w < g else 0 for w, g in zip(window, grid, strict=True)]
    (b, h, _, _), before = q.shape, site.before
    (x, keep), (y, _), (z, _) = (windows(t, grid, window, shift=shift, before=before) for t in (q, k, v))
    scores = _relative(site, bias, window, h, x) if bias else None
    if any(shift):
        apart = where(_together(b, grid, window, shift, x), 0.0, LOWEST)
        scores = apart if scores is None else scores + apart
    part = few(x, y, z, scale=site.scale, padding=keep, bias=scores)
    part = Part(*(unwindows(t, grid, window, shift=shift) for t in part))
    if not before:
        return normalised(part)
    first, rest = split(q, before)
    kf, vf = (slice_(t, dim=2, start=0, end=before) for t in (k, v))
    part = joined(part, few(rest, kf, vf, scale=site.scale))
    assert first is not None
    return cat(normalised(few(first, k, v, scale=site.scale)), normalised(part), dim=2)


def _relative(site: Mixing, name: str, window: Sequence[int], h: Dim, x: Value) -> Value:
    """[1, h, t, t] of the t tokens of a window."""
    t, place = product(window), OPS["const"](value=0, dtype=i64)
    for w, c in zip(window, coordinates(window), strict=True):
        apart = reshape(c, shape=(t, 1)) - reshape(c, shape=(1, t)) + (w - 1)
        place = place * (2 * w - 1) + apart
    table = site.learn(name, zeros(x.dtype, product([2 * w - 1 for w in window]), h))
    rows = index_select(table, reshape(place, shape=(t * t,)), dim=0)
    return permute(reshape(rows, shape=(1, t, t, h)), dims=(0, 3, 1, 2))


def _together(b: Dim, grid: Sequence[int], window: Sequence[int], shift: Sequence[int], x: Value) -> Value:
    """bool [b * windows, 1, t, t]: both tokens of a pair from the same side of each edge that was turned."""
    region = OPS["const"](value=0, dtype=i64)
    for c, by in zip(coordinates(grid), shift, strict=True):
        region = region * 2 + OPS["cast"](lt(c, by), dtype=i64)
    n = product(grid)
    marks = expand(reshape(as_dtype(region, x.dtype), shape=(1, 1, n, 1)), size=(b, 1, n, 1))
    marks, _ = windows(marks, grid, window, shift=shift)
    many, _, t, _ = marks.shape
    return eq(marks, reshape(marks, shape=(many, 1, 1, t)))


def exact_first(q: Value, k: Value, v: Value, site: Mixing) -> Value | None:
    """The tokens before the grid attending to all tokens, [b, h, before, e]; None where there are none."""
    first, _ = split(q, site.before)
    return None if first is None else normalised(few(first, k, v, scale=site.scale))
