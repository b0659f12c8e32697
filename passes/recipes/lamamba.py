"""LaMamba-Diff: windows of exact attention, and Mamba along four walks over the picture."""

from __future__ import annotations

from ...ir import RecipeError, Value
from ...ir.ops.activation import as_dtype, silu
from ...ir.ops.norm import layer_norm
from ...ir.ops.shape import flip, reshape, slice_
from .ehrmamba import width
from .pieces import scan, unscan, zeros
from .pieces.gates import filled, flat, from_tokens, heads_of
from .pieces.order import joined_to, split
from .pieces.selective import LEARNS, selective
from .pieces.tiles import sizes, tiled
from .recipe import recipe
from .vig import over_grid

WALKS = (((0, 1), False), ((0, 1), True), ((1, 0), False), ((1, 0), True))
"""The slower and the faster axis, and whether from the end; all are snakes."""


def _turned(x: Value, grid: tuple[int, ...], axes: tuple[int, int]) -> Value:
    """The rows of the picture from the bottom, for walks that go up the first column."""
    if axes == (0, 1):
        return x
    b, h, n, d = x.shape
    return reshape(flip(reshape(x, shape=(b, h, *grid, d)), dims=(2,)), shape=(b, h, n, d))


@recipe(
    paper="arXiv:2408.02615", kind="needs training", masks={"none"}, square=True, needs={"grid", "tokens"},
    learns={
        "bias": "0", "in": "N(0, 1 / channels)", "conv": "the identity", "norm": "1", "norm_bias": "0",
        "out": "0: at the start there is the attention in windows and no more",
        **{f"scan{i}_{name}": start for i in range(4) for name, start in LEARNS.items()},
    },
)  # fmt: skip
def lamamba(q, k, v, site, *, window: int = 8, state: int = 16, expand: int = 2):
    """Attention in windows of `window` x `window` tokens, plus Mamba on the tokens along four snakes.

    Along rows and back, up and down columns and back: y = norm(sum of scans of silu(conv u)) silu(z),
    [u, z] = x W. Windows have relative positions and are shifted in every second layer. In the paper
    the two follow one another, each with a residual; in the place of one attention they are added.
    Class tokens attend to all and are attended by all.
    """
    (_, h, _, _), e, x = q.shape, v.shape[3], site.tokens
    grid = sizes(site)
    if len(grid) != 2:
        raise RecipeError(f"a grid of {grid}: it walks over (height, width)")
    near = tiled(q, k, v, site, (window, window), shifted=site.index % 2 == 1, bias="bias")
    c = width(x.shape[2])
    inner = expand * c
    both = from_tokens(site, x, "in", 2 * inner, random=True)
    u, z = (slice_(both, dim=2, start=start, end=start + inner) for start in (0, inner))
    _, u = split(silu(over_grid(site, heads_of(u, 1), "conv")), site.before)
    total = None
    for i, (axes, back) in enumerate(WALKS):
        walked = flat(scan(_turned(u, grid, axes), grid, axes=axes, snake=True, reverse=back))
        y = selective(site, walked, state=state, rank=-(-c // 16), name=f"scan{i}_")
        y = unscan(heads_of(y, 1), grid, axes=axes, snake=True, reverse=back)
        y = _turned(y, grid, axes)
        total = y if total is None else total + y
    norm = site.learn("norm", filled(1.0, u.dtype, inner)), site.learn("norm_bias", zeros(u.dtype, inner))
    y = layer_norm(total, *norm, normalized_shape=(inner,))
    _, z = split(heads_of(z, 1), site.before)
    far = heads_of(from_tokens(site, flat(y * silu(z)), "out", h * e), h)
    if site.before:
        far = joined_to(zeros(far.dtype, q.shape[0], h, site.before, e), far)
    return as_dtype(near + far, q.dtype)
