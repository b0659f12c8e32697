"""LinGen: Mamba-2 from both ends along walks that change by layer, and windows in space and time."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir import RecipeError, Value
from ...ir.dims import Dim, ceildiv
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.linear_attention import linear_attention
from ...ir.ops.reduce import sum_
from ...ir.ops.shape import cat, permute, reshape, slice_
from ...ir.types import product
from .mamba2 import STARTS, norm_of_gated, skipped, step_and_decay
from .pieces import ROTARY_MAJOR, kept, ones, scan, unscan, windows, zeros
from .pieces.gates import flat, heads_of, repeated
from .pieces.order import joined_to, split
from .pieces.tiles import sizes, tiled
from .recipe import Mixing, recipe


def review(x: Value, grid: Sequence[int], pool: Sequence[int]) -> Value:
    """The means of x [b, h, n, d] over boxes of `pool` tokens of the grid, [b, h, boxes, d]."""
    b, h, _, d = x.shape
    parts, keep = windows(x, grid, pool)
    count = sum_(kept(ones(parts, None), keep), dim=(2,), keepdim=True)
    means = sum_(kept(parts, keep), dim=(2,), keepdim=True) / count
    boxes = product([ceildiv(g, p) for g, p in zip(grid, pool, strict=True)])
    return permute(reshape(means, shape=(b, boxes, h, d)), dims=(0, 2, 1, 3))


@recipe(
    paper="arXiv:2412.09856", kind="needs training", masks={"none"}, square=True, needs={"grid", "tokens"},
    learns={
        **STARTS, **{f"back_{name}": STARTS[name] for name in ("dt", "dt_bias", "A_log")},
        "norm": "0: at the start there is the attention in windows and no more",
    },
)  # fmt: skip
def lingen(q, k, v, site, *, window: int = 4, frames: int = 8, pool: int = 4):
    """MATE: attention in windows of `frames` x `window` x `window` tokens, plus Mamba-2 from both ends.

    Mamba-2 has C = scale q, B = k, x = v and steps of its own either way. Layer i walks the grid (T, H, W)
    by the order i mod 4 of rows or columns, frames slowest or fastest; before each walk come the means of
    boxes of `pool` tokens a side, seen and then dropped. Windows are shifted in every second layer. A
    grid (H, W) is one frame. Class tokens attend to all and are attended by all in the windows only.
    The paper has windows small in space and medium in time, and gives no sizes: these are guesses, and so
    is that the means come first on the way back too.
    """
    grid, h, before, x = sizes(site), q.shape[1], site.before, site.tokens
    if len(grid) not in (2, 3) or pool < 1:
        raise RecipeError(f"a grid of {grid}, pool={pool}: (frames, height, width), and 1 at least")
    grid = (1,) * (3 - len(grid)) + grid
    near = tiled(q, k, v, site, (frames, window, window), shifted=site.index % 2 == 1, grid=grid)
    axes, box = ROTARY_MAJOR[site.index % 4], [min(pool, g) for g in grid]
    operands = (wide(q) * site.scale, wide(k), wide(v), heads_of(x, 1))
    laid = [split(t, before)[1] for t in operands]
    first = [review(t, grid, box) for t in laid]
    many, total = first[0].shape[2], None
    for back in (False, True):
        walk = [
            cat(head, scan(t, grid, axes=axes, reverse=back), dim=2)
            for head, t in zip(first, laid, strict=True)
        ]
        y = unscan(_ssd(site, walk, h, many, "back_" if back else ""), grid, axes=axes, reverse=back)
        total = y if total is None else total + y
    total = total + skipped(site, repeated(laid[2], h))
    if before:
        total = joined_to(zeros(total.dtype, q.shape[0], h, before, v.shape[3]), total)
    return as_dtype(near + norm_of_gated(site, total, x, start=0.0), q.dtype)


def _ssd(site: Mixing, walk: Sequence[Value], h: Dim, many: Dim, name: str) -> Value:
    """Mamba-2's recurrence over the walk's q, k, v and tokens, without its first `many`."""
    q, k, v, x = walk
    dt, decay = step_and_decay(site, flat(x), h, name=name)
    b, _, n = dt.shape
    written = repeated(v, h) * reshape(dt, shape=(b, h, n, 1))
    y = linear_attention(q, k, written, decay, causal=True, normalize=False)
    return slice_(y, dim=2, start=many, end=n)
