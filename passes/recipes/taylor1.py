"""Softmax to first order in the scores."""

from ...ir import OPS
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.elementwise import maximum
from ...ir.ops.shape import cat, expand, slice_
from .pieces.linear import recurrence
from .recipe import MASKS, recipe


@recipe(paper="arXiv:2412.06590", kind="approximate", masks=MASKS, honours={"past"})
def taylor1(q, k, v, site):
    """InLine attention with the identity map: softmax to first order in the scores.

        w_ij = (1 + s q_i . k_j - s q_i . mean(k)) / N        rows sum to 1, and may be negative
        o_i  = s q_i . sum_j(k_j v_j^T) / N + (1 - s q_i . mean(k)) mean(v)

    Means and N run over the keys that row i sees. Good while the scores of a row differ by less
    than about one.
    """
    x, k, v = wide(q) * site.scale, site.kept(wide(k)), site.kept(wide(v))
    (b, h, n, _), (_, g, m, e) = q.shape, v.shape
    unit = OPS["const"](value=1.0, dtype=x.dtype)
    one = site.kept(expand(unit, size=(b, g, m, 1)))
    v1 = cat(v, one, dim=3)  # values, and a column that counts keys
    first = recurrence(site, x, k, v1, causal=site.causal)
    ones = expand(unit, size=(b, h, n, 1))
    total = recurrence(site, ones, one, v1, causal=site.causal)
    count = maximum(slice_(total, dim=3, start=e, end=e + 1), 1.0)
    mean_v = slice_(total, dim=3, start=0, end=e) / count
    lean = slice_(first, dim=3, start=e, end=e + 1) / count  # s q_i . mean(k)
    out = slice_(first, dim=3, start=0, end=e) / count + (1.0 - lean) * mean_v
    return as_dtype(out, q.dtype)
