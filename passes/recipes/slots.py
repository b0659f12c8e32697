"""Exact softmax over the neighbourhood, a few learned slots for the rest, one normaliser."""

from __future__ import annotations

import numpy as np

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
from .observed import Observed, closed_form
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


@closed_form("slots")
def centres(seen: Observed, *, count: int, **options: object) -> dict[str, np.ndarray]:
    """k-means of keys, each as heavy as the attention it received, by the error of the scores.

    The distance of a key from a centre is the mean of (scale q . (k - centre))^2 over queries, so that
    what is lost is least in expectation to second order."""
    metric = seen.scale**2 * seen.queries
    metric = metric + 1e-6 * np.trace(metric, axis1=1, axis2=2)[:, None, None] * np.eye(metric.shape[1])
    root = np.linalg.cholesky(metric)  # |(k - c) root|^2 is the distance
    found, lost = kmeans(seen.keys @ root, seen.mass, count)
    centre = np.linalg.solve(np.swapaxes(root, 1, 2), np.swapaxes(found, 1, 2))  # [g, d, count]
    sharp = SHARP / np.maximum(lost, 1e-12)[:, None, None]
    lift = np.sum(found**2, axis=2)[:, None, :]
    return {"key": sharp * (metric @ centre), "key_bias": -0.5 * sharp * lift}


SHARP = 32.0
"""How sharply shares tell centres apart: the exponent is -SHARP / 2 of the distance over what is lost."""


def kmeans(x: np.ndarray, weight: np.ndarray, count: int, steps: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Centres [g, count, d] of x [g, s, d] with weights [g, s], and the mean squared distance left, [g].

    Lloyd's iteration from k-means++ (Arthur and Vassilvitskii 2007), drawn from one seed.
    """
    rng, g, s = np.random.default_rng(0), *x.shape[:2]
    rows, square = np.arange(g), np.sum(x**2, axis=2)

    def distances(centre: np.ndarray) -> np.ndarray:
        cross = x @ np.swapaxes(centre, 1, 2)
        return np.maximum(square[:, :, None] - 2 * cross + np.sum(centre**2, axis=2)[:, None, :], 0.0)

    def draw(chance: np.ndarray) -> np.ndarray:
        total = np.cumsum(chance + 1e-300, axis=1)
        at = np.sum(total < rng.random((g, 1)) * total[:, -1:], axis=1)
        return x[rows, np.minimum(at, s - 1)][:, None]

    centre, nearest = draw(weight), np.full((g, s), np.inf)
    for _ in range(count - 1):
        nearest = np.minimum(nearest, distances(centre[:, -1:])[:, :, 0])
        centre = np.concatenate([centre, draw(weight * nearest)], axis=1)
    for _ in range(steps):
        own = np.argmin(distances(centre), axis=2)[:, :, None] == np.arange(count)
        share = own * weight[:, :, None]
        number = np.sum(share, axis=1)[:, :, None]
        centre = np.where(
            number > 0, np.swapaxes(share, 1, 2) @ x / np.where(number > 0, number, 1.0), centre
        )
    left = np.sum(weight * np.min(distances(centre), axis=2), axis=1)
    return centre, left / np.maximum(np.sum(weight, axis=1), 1e-300)
