"""Agent attention: a few pooled tokens gather from the keys and hand on to the queries."""

from __future__ import annotations

import math

from ...ir import OPS, RecipeError, Value
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.attention import attention, swap
from ...ir.ops.elementwise import rsqrt
from ...ir.ops.index import arange, gather, scatter, scatter_add
from ...ir.ops.linear import matmul
from ...ir.ops.random import randint
from ...ir.ops.reduce import argmax, sum_
from ...ir.ops.shape import cat, expand, permute, reshape
from ...ir.types import i64
from .pieces import grid_conv, grid_pool, resized, zeros
from .pieces.gates import repeated
from .pieces.order import split
from .recipe import Mixing, recipe

TABLE = 7
"""Sides of the tables that biases over the grid are resampled from."""


def side_of(agents: int) -> int:
    """The side of a square of agents. Raises RecipeError where they fill none."""
    if agents < 1 or math.isqrt(agents) ** 2 != agents:
        raise RecipeError(f"agents={agents}: they lie on a square grid, so 1, 4, 9, 16, ... of them")
    return math.isqrt(agents)


def plane(site: Mixing) -> tuple[int, int]:
    """The grid (H, W). Raises RecipeError where it has other axes, or sizes that are not known."""
    if len(site.grid) != 2 or not all(isinstance(size, int) for size in site.grid):
        raise RecipeError(f"it needs a grid (height, width) of known sizes, not {site.grid}")
    return site.grid  # type: ignore[return-value]


@recipe(
    paper="arXiv:2312.08874", kind="approximate", masks={"none"}, square=True, needs={"grid"},
    learns={
        "an_bias": "0", "ah_bias": "0", "aw_bias": "0", "ac_bias": "0 (where there are class tokens)",
        "na_bias": "0", "ha_bias": "0", "wa_bias": "0", "ca_bias": "0 (where there are class tokens)",
        "dwc": "0: no convolution", "dwc_bias": "0",
    },
)  # fmt: skip
def agent(q, k, v, site, *, agents: int = 49):
    """Agent attention: O = softmax(s Q A^T + B2) softmax(s A K^T + B1) V + DWC(V).

    A are means of Q over sqrt(agents) x sqrt(agents) windows of the grid, class and register tokens
    left out; those are keys and queries as the others are, and get no convolution. B1 and B2 are a
    7 x 7 table for each agent, resampled to the grid, plus a row, a column and a class term.
    DWC is a 3 x 3 depthwise convolution. All of these start at 0: two softmaxes and nothing more.
    """
    side, (rows, columns), before = side_of(agents), plane(site), site.before
    h, e, n = q.shape[1], v.shape[3], agents

    def bias(name: str, *shape: int) -> Value:
        return site.learn(f"{name}_bias", zeros(q.dtype, h, *shape))

    to_agents = resized(bias("an", n, TABLE, TABLE), (rows, columns))
    to_agents = to_agents + bias("ah", n, rows, 1) + bias("aw", n, 1, columns)
    to_agents = reshape(to_agents, shape=(1, h, n, rows * columns))
    table = permute(resized(bias("na", n, TABLE, TABLE), (rows, columns)), dims=(0, 2, 3, 1))
    to_queries = table + bias("ha", rows, 1, n) + bias("wa", 1, columns, n)
    to_queries = reshape(to_queries, shape=(1, h, rows * columns, n))
    if before:
        to_agents = cat(reshape(bias("ac", n, before), shape=(1, h, n, before)), to_agents, dim=3)
        to_queries = cat(reshape(bias("ca", before, n), shape=(1, h, before, n)), to_queries, dim=2)

    a = grid_pool(q, site.grid, (side, side), before=before)
    gathered = attention(a, k, v, to_agents, scale=site.scale)
    out = attention(q, a, as_dtype(gathered, v.dtype), to_queries, scale=site.scale)
    w = site.learn("dwc", zeros(q.dtype, h * e, 3, 3))
    dwc_bias = site.learn("dwc_bias", zeros(q.dtype, h * e))
    return out + as_dtype(grid_conv(repeated(v, h), w, site.grid, bias=dwc_bias, before=before), q.dtype)


@recipe(
    paper="arXiv:2312.08874", kind="approximate", masks={"none"}, square=True, needs={"grid", "tokens"},
)  # fmt: skip
def agent_sd(q, k, v, site, *, agents: int = 256, k_scale2: float = 0.3, k_shortcut: float = 0.075):
    """AgentSD, for diffusion without training: softmax(s^0.3 Q A^T) softmax(s A K^T) V + 0.075 V.

    Agents are tokens merged as ToMe does (arXiv:2210.09461): the grid is cut into sqrt(agents) x
    sqrt(agents) cells, one place of each is drawn once, every other token joins the drawn token that is
    nearest by cosine, and A is the mean of their queries. 256 agents are the paper's 4 x 4 cells
    at its 64 x 64 latents; there they grow with the picture, here they do not. Class tokens join none.
    Where there are not more than twice as many tokens as agents it is the softmax itself, as in the paper.
    AgentSD also merges the tokens it attends with; this does not.
    """
    (rows, columns), before, n = plane(site), site.before, q.shape[2]
    high, wide_ = (min(side_of(agents), size) for size in (rows, columns))
    if 2 * high * wide_ >= n:
        return attention(q, k, v, scale=site.scale)
    a = merged(q, site.tokens, drawn(site, high, wide_), before)
    gathered = attention(a, k, v, scale=site.scale)
    out = attention(q, a, as_dtype(gathered, v.dtype), scale=site.scale**k_scale2)
    return out + as_dtype(repeated(v, q.shape[1]) * k_shortcut, q.dtype)


def drawn(site: Mixing, high: int, wide_: int) -> Value:
    """i64 [high * wide_]: the number of one token of each cell, counted from the first of the grid."""
    rows, columns = plane(site)
    cell = rows // high, columns // wide_
    draw = randint(low=0, high=cell[0] * cell[1], size=(high, wide_), dtype=i64, key=1)
    down = OPS["div"](draw, cell[1], rounding_mode="floor")
    row = reshape(arange(start=0, end=high, dtype=i64) * cell[0], shape=(high, 1)) + down
    column = arange(start=0, end=wide_, dtype=i64) * cell[1] + draw - down * cell[1]
    return site.fixed("places", reshape(row * columns + column, shape=(high * wide_,)))


def merged(q: Value, x: Value, places: Value, before: int) -> Value:
    """Means [b, h, a, d] of queries [b, h, n, d] over the tokens nearest to those at `places` [a].

    x [b, n, c] says which is nearest, by cosine; the first `before` tokens have no part in it.
    """
    _, q = split(q, before)
    _, x = split(reshape(x, shape=(x.shape[0], 1, *x.shape[1:])), before)
    x = wide(x)
    (b, h, n, d), c, a = q.shape, x.shape[3], places.shape[0]
    x = x * rsqrt(sum_(x * x, dim=(3,), keepdim=True) + 1e-12)
    chosen = gather(x, expand(reshape(places, shape=(1, 1, a, 1)), size=(b, 1, a, c)), dim=2)
    nearest = argmax(matmul(x, swap(chosen)), dim=3, keepdim=True)  # [b, 1, n, 1]
    at = expand(reshape(places, shape=(1, 1, a, 1)), size=(b, 1, a, 1))
    own = expand(reshape(arange(start=0, end=a, dtype=i64), shape=(1, 1, a, 1)), size=(b, 1, a, 1))
    nearest = scatter(nearest, at, own, dim=2)
    y = wide(q)
    total = scatter_add(zeros(y.dtype, b, h, a, d), expand(nearest, size=(b, h, n, d)), y, dim=2)
    count = scatter_add(zeros(y.dtype, b, 1, a, 1), nearest, zeros(y.dtype, b, 1, n, 1) + 1.0, dim=2)
    return as_dtype(total / count, q.dtype)
