"""Exact softmax over the neighbourhood, a few learned slots for the rest, one normaliser."""

from __future__ import annotations

from ...ir import RecipeError, Value
from ...ir.dims import Dim
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.attention import heads, swap
from ...ir.ops.elementwise import gt, log, maximum
from ...ir.ops.linear import matmul
from ...ir.ops.random import randn
from ...ir.ops.shape import cat, expand, reshape, slice_
from ...ir.types import f32
from . import features
from .pieces import blocks, merge, tokens, zeros
from .pieces.local import outside, windowed_blocks
from .pieces.parts import ones, softmax_part
from .recipe import ALL, recipe

FEW = 1e-6
"""Keys that a slot must hold for its mean to count in full."""


@recipe(
    paper="", kind="approximate", masks=ALL, square=True,
    learns={"key": "directions N(0, 1), per key head", "key_bias": "0", "level": "0"},
)  # fmt: skip
def slots(q, k, v, site, *, size: int = 64, count: int = 32):
    """Exact softmax over the own and the neighbouring blocks of `size` tokens, plus `count` slots.

    Every other key j belongs to slot c by a share a_jc = softmax_c(k_j W + b), and a slot enters as one key:

        log-weight  l_c = ln n_c + scale q . mean_c(k) + level_c,     n_c = sum_j a_jc
        value       mean_c(v),      mean_c(x) = sum_j a_jc x_j / n_c

    under one normaliser with the near keys. Exact where the keys of a slot are alike; W and b from
    k-means of keys make them so. Causal: the near keys are the own and the previous block, the slots
    hold what lies before. Slots of a bounded number are those of ABC (arXiv:2110.02488), which has neither
    counts nor near keys.
    """
    if count < 1:
        raise RecipeError(f"count={count}: one slot at least")
    local = windowed_blocks(q, k, v, size=size, scale=site.scale, causal=site.causal, padding=site.padding)
    each, (_, h, n, d), (b, g, _, e) = heads(q, k, v), q.shape, v.shape
    x = blocks(wide(q) * site.scale, size, each)
    k, v = site.kept(wide(k)), site.kept(wide(v))
    w = site.learn("key", as_dtype(randn(size=(g, d, count), dtype=f32, key=1), q.dtype))
    bias = site.learn("key_bias", zeros(q.dtype, g, 1, count))
    share = site.kept(features.softmax(features.learned(k, w, bias)))
    one = expand(ones(k, site.padding), size=(b, g, n, 1))
    held = matmul(swap(blocks(share, size)), blocks(cat(k, v, one, dim=3), size))
    held = outside(held, site.causal)  # [b, g, c, count, d + e + 1]
    number = slice_(held, dim=4, start=d + e, end=d + e + 1)
    means = held / maximum(number, FEW)
    keys, values = slice_(means, dim=4, start=0, end=d), slice_(means, dim=4, start=d, end=d + e)
    level = wide(_by_row(site.learn("level", zeros(q.dtype, h, count)), g, each, size))
    scores = matmul(x, swap(keys)) + swap(log(maximum(number, FEW))) + level
    tail = softmax_part(scores, values, swap(gt(number, 0.0)))
    return tokens(merge(local, tail, dtype=q.dtype), n, each)


def _by_row(x: Value, g: Dim, each: Dim, size: int) -> Value:
    """x [h, c], one row a query head, as [1, g, 1, each * size, c] for queries in blocks."""
    c = x.shape[1]
    x = expand(reshape(x, shape=(g, each, 1, c)), size=(g, each, size, c))
    return reshape(x, shape=(1, g, 1, each * size, c))
