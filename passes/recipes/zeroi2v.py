"""ZeroI2V: attention within each frame of a video, in which two heads look at the neighbouring frames."""

from __future__ import annotations

from ...ir import RecipeError, Value
from ...ir.dims import Dim
from ...ir.ops.attention import attention
from ...ir.ops.shape import cat, expand, permute, reshape
from ...ir.types import product
from .pieces import temporal_shift
from .pieces.order import joined_to, split
from .recipe import recipe


@recipe(paper="arXiv:2310.01324", kind="needs training", masks={"none"}, square=True, needs={"grid"})
def zeroi2v(q, k, v, site, *, frames: int = 0, shift_div: int = 0, long: bool = False):
    """Dual-headed attention: softmax within a frame, keys and values of some channels from another frame.

    Of the channels of all heads in order, the first part 1 / shift_div comes from the frame before,
    the next from the frame after, and with `long` a third from two frames before; frames without such
    a neighbour keep their own. shift_div=0 is the number of key heads, so that the parts are whole heads.

    frames=0: the tokens lie on a grid (frames, height, width), and joint attention becomes attention
    within frames; class tokens attend to all tokens and are keys in every frame. frames=8: an
    image model is run on a batch of videos, eight frames of each one after another.
    Linear in the number of frames, quadratic in the tokens of one. The paper then trains adapters,
    linear ones, which can be merged into the projections; they are not part of this.
    """
    g = k.shape[1]
    steps = (-1, 1, -2) if long else (-1, 1)
    if shift_div < 0 or frames < 0:
        raise RecipeError(f"frames={frames}, shift_div={shift_div}: no negative numbers")
    parts = shift_div or g
    if not isinstance(parts, int) or parts < len(steps):
        raise RecipeError(f"{len(steps)} parts of 1 / {parts} of the channels are more than all of them")
    if not frames and (len(site.grid) != 3 or not isinstance(site.grid[0], int)):
        raise RecipeError(f"it needs a grid (frames, height, width) or the option frames=, not {site.grid}")
    if frames and not (isinstance(q.shape[0], int) and q.shape[0] % frames == 0):
        raise RecipeError(f"a batch of {q.shape[0]} is not known to be videos of {frames} frames")

    def moved(x: Value, many: Dim) -> Value:
        channels = x.shape[1] * x.shape[3]
        if not isinstance(channels, int):
            raise RecipeError(f"{channels} channels: their number has to be known")
        return temporal_shift(x, many, each=channels // parts, steps=steps)

    if frames:
        return attention(q, moved(k, frames), moved(v, frames), scale=site.scale)
    count, before = site.grid[0], site.before
    (first_q, x), (first_k, y), (first_v, z) = (split(part, before) for part in (q, k, v))
    y, z = moved(in_frames(y, site.grid), count), moved(in_frames(z, site.grid), count)
    if first_k is not None and first_v is not None:
        y, z = (cat(in_each(a, count), part, dim=2) for a, part in ((first_k, y), (first_v, z)))
    out = attention(in_frames(x, site.grid), y, z, scale=site.scale)
    out = out_of_frames(out, count)
    return out if first_q is None else joined_to(attention(first_q, k, v, scale=site.scale), out)


def in_frames(x: Value, grid: tuple[Dim, ...]) -> Value:
    """x [b, h, frames * n, d] as [b * frames, h, n, d]."""
    (b, h, _, d), count, n = x.shape, grid[0], product(grid[1:])
    y = permute(reshape(x, shape=(b, h, count, n, d)), dims=(0, 2, 1, 3, 4))
    return reshape(y, shape=(b * count, h, n, d))


def out_of_frames(x: Value, count: int) -> Value:
    """The inverse of `in_frames`."""
    many, h, n, d = x.shape
    b = many // count
    y = permute(reshape(x, shape=(b, count, h, n, d)), dims=(0, 2, 1, 3, 4))
    return reshape(y, shape=(b, h, count * n, d))


def in_each(x: Value, count: int) -> Value:
    """x [b, h, n, d] for each of `count` frames, [b * count, h, n, d]."""
    b, h, n, d = x.shape
    y = expand(reshape(x, shape=(b, 1, h, n, d)), size=(b, count, h, n, d))
    return reshape(y, shape=(b * count, h, n, d))
