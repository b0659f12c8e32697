"""PISA: the blocks that matter exactly, the others by a Taylor expansion around their mean key."""

from __future__ import annotations

import math

from ...ir import RecipeError
from .pieces import normalised, selected
from .recipe import ALL, recipe


@recipe(paper="arXiv:2602.01077", kind="approximate", masks=ALL, square=True)
def pisa(q, k, v, site, *, size: int = 64, density: float = 0.15, count: int = 0, order: int = 1):
    """Piecewise sparse attention: one softmax over the best blocks exactly and the rest in outline.

        o = (sum_near e^s v + sum_far e^(s q . mean k_J) (sum_J v + |J| s q H / N)) / (... of 1)
        H = sum over all blocks of sum_J (k - mean k_J)^T v

    Each block of queries takes the `count` blocks of keys with the highest mean score, or the part
    `density` of all blocks. order=0 leaves out H, which stands for the deviations of keys from their
    means. Causal, the own block is exact, only earlier ones are chosen from, by the first query of the
    block, and sums run over those.

    Means of n / size blocks cost n^2 (d + e) / size: linear only while n is below count size^2,
    and `density` makes the exact part quadratic as well.
    """
    if order not in (0, 1) or count < 0 or not 0 < density <= 1:
        given = f"order={order}, count={count}, density={density}"
        raise RecipeError(f"{given}: order is 0 or 1, count not negative, density above 0 and at most 1")
    n = k.shape[2]
    if not count and not isinstance(n, int):
        raise RecipeError(f"the part {density:g} of {n} keys is not a known number of blocks: pass count=")
    near = count or max(1, round(density * math.ceil(n / size)))
    part = selected(
        q, k, v, size=size, count=near, scale=site.scale, causal=site.causal,
        rest="first" if order else "zeroth", padding=site.padding,
    )  # fmt: skip
    return normalised(part, q.dtype)
