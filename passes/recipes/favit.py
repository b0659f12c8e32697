"""FaViT's factorised attention: full on a few channels of a smaller picture, pooled windows on the others."""

from __future__ import annotations

from ...ir import Dim, RecipeError, Value
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.attention import attention, swap
from ...ir.ops.conv import convolution
from ...ir.ops.linear import linear, matmul
from ...ir.ops.norm import layer_norm
from ...ir.ops.random import randn
from ...ir.ops.reduce import mean
from ...ir.ops.shape import cat, pad, permute, reshape, slice_
from ...ir.types import f32
from .agent import plane
from .pieces import grid_conv, zeros
from .pieces.gates import filled, flat, heads_of
from .pieces.grid import from_map, to_map
from .pieces.order import split
from .recipe import Mixing, recipe

WINDOW = 7
"""Keys along one side of a window; the pooled windows have 49."""


@recipe(
    paper="arXiv:2312.08614", kind="needs training", masks={"none"}, square=True, needs={"grid", "tokens"},
    learns={
        "sr": "N(0, 2 / fan out)", "sr_bias": "0", "norm": "1", "norm_bias": "0", "kv_g": "N(0, 0.02^2)",
        "kv_g_bias": "0", "conv_g": "N(0, 2 / 9)", "conv_g_bias": "0", "depth": "N(0, 2 / 9)",
        "depth_bias": "0", "point": "N(0, 2 / channels)", "point_bias": "0", "fc": "N(0, 0.02^2)",
        "fc_bias": "0", "kv_l": "N(0, 0.02^2)", "kv_l_bias": "0", "conv_l": "N(0, 2 / 9)",
        "conv_l_bias": "0",
    },
)  # fmt: skip
def favit(q, k, v, site, *, sr: int = 2, pooling: str = "mean"):
    """Factorised self-attention, of the model's queries with keys and values made anew from the tokens.

    One eighth of the channels attends as one head to the picture shrunk sr-fold. The others, in as
    many heads as before, attend to 49 keys: the picture is cut into windows of 7 x 7 places, once next to one
    another and once sr apart (sr > 1), and all windows are pooled into one. pooling: "mean" over windows,
    as the paper has it, or "compat", as its code does: means of runs of the flattened axis of
    windows and channels, which mixes channels. Class tokens are queries, not keys.

    The first part costs n^2 c / (8 sr^2): linear only if sr grows with the picture (8, 4, 2, 1 by
    stage in the paper). Channels must divide by 8 times the heads, 16 times for sr > 1.
    """
    (rows, columns), x, h = plane(site), site.tokens, q.shape[1]
    c, parts = x.shape[2], (2, WINDOW, WINDOW) if sr > 1 else (1, WINDOW)
    if sr < 1 or pooling not in ("mean", "compat"):
        raise RecipeError(f"sr={sr}, pooling={pooling!r}: a positive number, and 'mean' or 'compat'")
    if not (c == h * q.shape[3] == h * v.shape[3]) or c % (sum(parts) * h) != 0:
        raise RecipeError(
            f"tokens of {c} channels, {h} heads of {q.shape[3]} and {v.shape[3]}: it needs as many channels "
            f"of all, a multiple of {sum(parts)} times the heads"
        )
    if rows % sr or columns % sr:
        raise RecipeError(f"a grid of {rows} x {columns} does not shrink {sr}-fold")
    few = c // sum(parts) * parts[0]
    each = c // sum(parts) * WINDOW // h  # channels of a head of one group

    x = wide(x)
    _, x = split(reshape(x, shape=(x.shape[0], 1, *x.shape[1:])), site.before)
    asked = wide(flat(q))
    near, far = (slice_(y, dim=y.rank - 1, start=0, end=few) for y in (asked, x))
    one = shrunk(site, near, far, sr)
    near, far = (slice_(y, dim=y.rank - 1, start=few, end=c) for y in (asked, x))
    two = pooled(site, near, far, h, each, tuple(range(1, len(parts))), sr, pooling)
    return as_dtype(heads_of(cat(one, two, dim=2), h), q.dtype)


def shrunk(site: Mixing, q: Value, x: Value, sr: int) -> Value:
    """Attention of q [b, n, c] to tokens x [b, 1, grid, c] shrunk by a convolution of stride sr."""
    (b, n, c), (rows, columns) = q.shape, plane(site)
    w = site.learn("sr", normal(q, (c, c, sr, sr), (2.0 / (sr * sr * _int(c))) ** 0.5))
    y = convolution(
        to_map(x, site.grid), w, None, stride=(sr, sr), padding=(0, 0), dilation=(1, 1),
        output_padding=(0, 0), groups=1,
    )  # fmt: skip
    y = reshape(from_map(y, 1), shape=(b, rows // sr * (columns // sr), c)) + bias(site, q, "sr", c)
    norm = site.learn("norm", filled(1.0, q.dtype, c)), site.learn("norm_bias", zeros(q.dtype, c))
    y = layer_norm(y, *norm, normalized_shape=(c,), eps=1e-5)
    y = linear(y, site.learn("kv_g", normal(q, (2 * c, c), 0.02)), bias(site, q, "kv_g", 2 * c))
    y = reshape(y, shape=(b, 1, *y.shape[1:]))
    k, v = (slice_(y, dim=3, start=i * c, end=(i + 1) * c) for i in range(2))
    v = v + depthwise(site, v, "conv_g", (rows // sr, columns // sr))
    out = attention(reshape(q, shape=(b, 1, n, c)), k, v, scale=_int(c) ** -0.5)
    return reshape(out, shape=(b, n, c))


def pooled(site: Mixing, q: Value, x: Value, h: int, each: int, groups: tuple[int, ...], sr: int,
           pooling: str) -> Value:  # fmt: skip
    """Attention of q [b, n, c] to 49 keys for each group of channels, windows of x [b, 1, grid, c] pooled.

    Heads are formed before groups in q, groups before heads in x.
    """
    (b, n, c), many, keys = q.shape, len(groups), WINDOW * WINDOW
    y = depthwise(site, x, "depth", site.grid)
    y = linear(y, site.learn("point", normal(q, (c, c), (2.0 / _int(c)) ** 0.5)), bias(site, q, "point", c))
    picture, size = to_map(y, site.grid), h * each
    found = [
        windows(slice_(picture, dim=1, start=i * size, end=(i + 1) * size), h, sr if i else 1, pooling)
        for i in range(many)
    ]
    y = cat(*(reshape(part, shape=(b, 1, h * keys, each)) for part in found), dim=1)
    for name, out in (("fc", each), ("kv_l", 2 * each)):
        w = site.learn(name, normal(q, (many, out, each), 0.02))
        y = matmul(y, swap(w)) + bias(site, q, name, many, 1, out)
    k, v = (slice_(y, dim=3, start=i * each, end=(i + 1) * each) for i in range(2))
    k, v = (reshape(part, shape=(b, many * h, keys, each)) for part in (k, v))
    v = v + depthwise(site, v, "conv_l", (WINDOW, WINDOW))
    q = permute(reshape(q, shape=(b, n, h, many, each)), dims=(0, 3, 2, 1, 4))
    return flat(attention(reshape(q, shape=(b, many * h, n, each)), k, v, scale=each**-0.5))


def windows(x: Value, h: int, dilation: int, pooling: str) -> Value:
    """The windows of a picture [b, h * d, H, W], their places `dilation` apart, as one: [b, h, 49, d]."""
    b, c, *grid = x.shape
    span = dilation * (WINDOW - 1) + 1
    right, below = ((-_int(size)) % span for size in reversed(grid))
    if right >= _int(grid[1]) or below >= _int(grid[0]):
        raise RecipeError(
            f"a grid of {grid[0]} x {grid[1]} is too small to fill windows of {span} by reflection"
        )
    x = pad(x, pad=(0, right, 0, below), mode="reflect")
    down, across = x.shape[2] // span, x.shape[3] // span
    x = reshape(x, shape=(b, h, c // h, down, span, across, span))
    for dim in (4, 6):
        x = slice_(x, dim=dim, start=0, end=span, step=dilation)
    x = permute(x, dims=(0, 1, 4, 6, 3, 5, 2))  # [b, h, 7, 7, down, across, d]
    shape = (c // h, down * across) if pooling == "compat" else (down * across, c // h)
    x = reshape(x, shape=(b, h, WINDOW * WINDOW, *shape))
    return mean(x, dim=(4 if pooling == "compat" else 3,))


def depthwise(site: Mixing, x: Value, name: str, grid: tuple[Dim, ...]) -> Value:
    """A learned 3 x 3 convolution of each channel of x [b, h, grid, d]."""
    channels = x.shape[1] * x.shape[3]
    w = site.learn(name, normal(x, (channels, 3, 3), (2.0 / 9) ** 0.5))
    return grid_conv(x, w, grid, bias=bias(site, x, name, channels))


def normal(like: Value, shape: tuple[Dim, ...], deviation: float) -> Value:
    """Gaussian numbers to start a weight from."""
    return as_dtype(randn(size=shape, dtype=f32, key=1) * deviation, like.dtype)


def bias(site: Mixing, like: Value, name: str, *shape: Dim) -> Value:
    """`name`_bias, which starts at 0."""
    return site.learn(f"{name}_bias", zeros(like.dtype, *shape))


def _int(dim: Dim) -> int:
    if not isinstance(dim, int):
        raise RecipeError(f"a size of {dim} has to be known")
    return dim
