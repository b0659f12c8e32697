"""Queries and keys as binary codes, so that scores are counts of equal bits."""

import math

from ...ir import RecipeError
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.elementwise import maximum
from ...ir.ops.random import randn
from ...ir.ops.reduce import sum_
from ...ir.types import f32
from . import features
from .pieces.gates import filled, repeated
from .pieces.linear import linear_sums
from .pieces.parts import ones
from .recipe import recipe

OFFSETS = ("self", "sum")


@recipe(paper="arXiv:2209.09004", kind="needs training", masks={"none", "padding"}, square=True)
def ecoformer(q, k, v, site, *, bits: int = 16, anchors: int = 25, offset: str = "self"):
    """EcoFormer: queries and keys are one, the queries, hashed to codes c of `bits` signs.

        self  o_i = (sum_j (c_i . c_j) v_j + (bits + 1) v_i) / (sum_j c_i . c_j + (bits + 1) N)
        sum   o_i = sum_j (c_i . c_j + bits + 1) v_j / (sum_j c_i . c_j + (bits + 1) N)

    c = sign((exp(-|u - a|^2 / 2 width) - mean) W), u = q / |q|, with `anchors` points a. "self" is what
    the released checkpoints were trained with, "sum" what a positive kernel means. The model's key
    projection is not used. a, W and mean are kept fixed and start as random directions; the paper
    fits them to data, greedily bit by bit. The gradient passes straight through the signs.
    """
    if offset not in OFFSETS:
        raise RecipeError(f"offset={offset!r}: it is 'self' or 'sum'")
    h, d = q.shape[1], q.shape[3]
    centres = randn(size=(h, anchors, d), dtype=f32, key=1) * d**-0.5
    points = site.fixed("anchors", as_dtype(centres, q.dtype))
    level = site.fixed("mean", filled(math.exp(-0.5), q.dtype, h, 1, anchors))
    planes = site.fixed("planes", as_dtype(randn(size=(h, anchors, bits), dtype=f32, key=2), q.dtype))
    c = features.codes(wide(q), points, level, planes, padding=site.padding)
    v = site.kept(wide(v))
    value, weight = linear_sums(c, site.kept(c), v, padding=site.padding)
    own = repeated(v, h) if offset == "self" else sum_(repeated(v, h), dim=(2,), keepdim=True)
    count = maximum(sum_(ones(v, site.padding), dim=(2,), keepdim=True), 1.0)
    return as_dtype((value + own * (bits + 1.0)) / (weight + count * (bits + 1.0)), q.dtype)
