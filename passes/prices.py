"""What recipes cost beside exact attention: how FLOPs grow with tokens, and from how many they are fewer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..ir import OPS, Dim, Graph, RecipeError, TensorType, building, cost, symbol
from ..ir.dims import evaluate
from ..ir.ops.attention import attention
from ..ir.types import f32
from .recipes import Mixing, Recipe

HEADS, HEAD_DIM, LAYERS, FRAMES = 12, 64, 12, 4
"""The attention that prices are of: 12 heads of 64, the second of 12 layers; videos have 4 frames."""

MOST, BLOCK = 1 << 20, 256
"""The most tokens that are looked at. Costs rise in steps of blocks, and above a crossover so many tokens
are looked at for a step back."""


@dataclass(frozen=True)
class Price:
    """What a recipe costs at 12 heads of 64.

    exponent: of FLOPs in tokens, towards a million of them. each: FLOPs a token and head at 16,384
    tokens. crossover: the number of tokens from which on its FLOPs are fewer than exact
    attention's under the same mask; None where they are not at a million.
    """

    exponent: float
    each: float
    crossover: int | None


@dataclass(frozen=True)
class _Layout:
    """Tokens and FLOPs by size: the length of a sequence, or half the side of a grid (some need it even)."""

    tokens: Callable[[int], int]
    flops: Callable[[int], int]
    middle: int
    most: int


def price(recipe: Recipe) -> Price:
    """By the symbolic cost of the ops that the recipe builds. Raises RecipeError where it refuses.

    Where it needs a grid that is a square, of 4 frames where it is for videos.
    """
    at, exact = _layout(recipe), _sequence(None, "none" not in recipe.masks)

    @functools.cache
    def fewer(size: int) -> bool:
        return at.flops(size) < exact(at.tokens(size))

    doubled = at.flops(at.most) / at.flops(at.most // 2)
    exponent = math.log(doubled) / math.log(at.tokens(at.most) / at.tokens(at.most // 2))
    each = at.flops(at.middle) / at.tokens(at.middle) / HEADS
    if not fewer(at.most):
        return Price(exponent, each, None)
    low, high = 0, at.most
    while high - low > 1:
        half = (low + high) // 2
        low, high = (low, half) if fewer(half) else (half, high)
    if "grid" not in recipe.needs:
        above = range(high, min(high + BLOCK, at.most))
        high = 1 + max((n for n in above if not fewer(n)), default=high - 1)
    return Price(exponent, each, at.tokens(high))


def _layout(recipe: Recipe) -> _Layout:
    """The first layout that the recipe takes."""
    refused = RecipeError(f"{recipe} takes no layout that was tried")
    for layout in _layouts(recipe):
        try:
            layout.flops(layout.middle)
        except RecipeError as error:
            refused = error
        else:
            return layout
    raise refused


def _layouts(recipe: Recipe) -> Iterator[_Layout]:
    if "grid" in recipe.needs:
        yield _grid(recipe, (), 1 << 6, 1 << 9)
        yield _grid(recipe, (FRAMES,), 1 << 5, 1 << 8)
        return
    causal = "none" not in recipe.masks

    def known(n: int) -> int:
        return evaluate(_flops(recipe, n, causal=causal), {})

    for flops in (_sequence(recipe, causal), known):  # some must know how many tokens there are
        yield _Layout(lambda n: n, flops, 1 << 14, MOST)


def _grid(recipe: Recipe, frames: tuple[int, ...], middle: int, most: int) -> _Layout:
    def tokens(half: int) -> int:
        return math.prod(frames) * (2 * half) ** 2

    def flops(half: int) -> int:
        return evaluate(_flops(recipe, tokens(half), (*frames, 2 * half, 2 * half)), {})

    return _Layout(tokens, flops, middle, most)


def _sequence(recipe: Recipe | None, causal: bool) -> Callable[[int], int]:
    """FLOPs by tokens, the graph built once with their number open."""
    found: list[Dim] = []

    def flops(n: int) -> int:
        if not found:
            found.append(_flops(recipe, symbol("n"), causal=causal))
        return evaluate(found[0], {"n": n})

    return flops


@functools.lru_cache(4096)
def _flops(recipe: Recipe | None, n: Dim, grid: tuple[Dim, ...] = (), causal: bool = False) -> Dim:
    """FLOPs of one site of n tokens under a recipe, or as it is."""
    heads, width = TensorType(f32, (1, HEADS, n, HEAD_DIM)), TensorType(f32, (1, n, HEADS * HEAD_DIM))
    with building():
        q, k, v = (OPS["input"](name=name, type=heads) for name in "qkv")
        x, scale = OPS["input"](name="x", type=width), HEAD_DIM**-0.5
        if recipe is None:
            result = attention(q, k, v, scale=scale, causal=causal)
        else:
            result = recipe(q, k, v, Mixing(scale, causal, index=1, count=LAYERS, tokens=x, grid=grid))
        return cost(Graph("site", (q, k, v, x), (result,))).flops
