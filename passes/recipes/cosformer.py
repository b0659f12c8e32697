"""Rectified features, weighted down by the distance of their tokens."""

from ...ir import RecipeError
from ...ir.dims import maximum as longer
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.elementwise import maximum
from . import features
from .pieces.linear import linear_sums
from .recipe import ALL, recipe


@recipe(paper="arXiv:2202.08791", kind="needs training", masks=ALL)
def cosformer(q, k, v, site, *, length: int = 0):
    """cosFormer: weights relu(q_i) . relu(k_j) cos(pi (i - j) / 2M), normalised by row.

    M is `length`, or the longer of queries and keys where none is given, as in the paper. Then a
    longer input changes earlier outputs, so a causal site needs a length. Positions beyond it count
    as M, which keeps every weight from falling below 0.
    """
    if site.causal and not length:
        raise RecipeError("its angles would depend on the number of tokens: pass length=, the longest input")
    total = length or longer(q.shape[2], k.shape[2])
    x, k = (features.cosine(wide(y), length=total) for y in (q, site.kept(k)))
    value, weight = linear_sums(x, site.kept(k), site.kept(wide(v)), causal=site.causal, padding=site.padding)
    return as_dtype(value / maximum(weight, 1e-6), q.dtype)
