"""The polynomial method: exp as a polynomial where entries are bounded; attention to pairs of tokens."""

import math

from ...ir import RecipeError
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.attention import swap
from ...ir.ops.linear import matmul
from ...ir.ops.nonlinear import clamp
from ...ir.ops.shape import cat, expand, slice_
from . import features
from .pieces.gates import filled, repeated
from .pieces.linear import recurrence
from .pieces.parts import ones, zeros
from .recipe import MASKS, recipe


def bounded(x, site, order, limit, tolerance):
    """The polynomial's features of x, entries within +-limit; 0: the most that the tolerance allows."""
    if order < 2 or order % 2:
        raise RecipeError(f"order={order}: an even one, for the others fall below 0")
    if not limit:
        low, high = 0.0, 8.0 + order  # greatest score at which the polynomial is still good enough
        for _ in range(50):
            middle = (low + high) / 2
            good = features.taylor_error(middle, order) <= tolerance
            low, high = (middle, high) if good else (low, middle)
        limit = math.sqrt(low / (site.scale * x.shape[3]))
    return features.polynomial(x, order=order, scale=site.scale, limit=limit, tolerance=tolerance)


@recipe(paper="arXiv:2302.13214", kind="approximate", masks=MASKS, honours={"past"})
def polynomial(q, k, v, site, *, order: int = 2, limit: float = 0.0, tolerance: float = 0.1):
    """Attention with bounded entries: weights sum_(m <= order) (scale q . k)^m / m!, normalised by row.

    Entries of q and k are held within +-limit, so that no weight is off by more than `tolerance` of
    itself for the scores that are left: good where entries are that small, and refused where a
    limit that is asked for cannot promise it. C(d + order, order) features a head.
    """
    x, k = (bounded(wide(y), site, order, limit, tolerance) for y in (q, site.kept(k)))
    out = recurrence(site, x, site.kept(k), site.kept(wide(v)), causal=site.causal, normalize=True, eps=1e-12)
    return as_dtype(out, q.dtype)


@recipe(
    paper="arXiv:2310.04064", kind="needs training", masks={"none", "padding"},
    learns={"second_key": "0", "second_key_bias": "1", "second_value": "0", "second_value_bias": "1"},
)  # fmt: skip
def tensor_attention(q, k, v, site, *, order: int = 2, limit: float = 0.0, tolerance: float = 0.1):
    """Attention to pairs of tokens (j, l): weights exp(scale sum_c q_c k_jc k'_lc), values v_j v'_l.

    exp is the polynomial of `polynomial`, so that a state of k and v times one of k' and v' does for all
    m^2 pairs. k' = k A + a, held within +-1, and v' = v B + b; at the start all 1: `polynomial`.
    """
    (h, d), (g, e) = (q.shape[1], q.shape[3]), (v.shape[1], v.shape[3])
    k, v = site.kept(wide(k)), site.kept(wide(v))

    def second(x, name, width):
        w, bias = site.learn(name, zeros(q.dtype, g, width, width)), f"{name}_bias"
        y = matmul(x, as_dtype(w, x.dtype))
        return y + as_dtype(site.learn(bias, filled(1.0, q.dtype, g, 1, width)), x.dtype)

    one = expand(ones(v, site.padding), size=(*v.shape[:3], 1))
    k2, v2 = clamp(second(k, "second_key", d), min=-1.0, max=1.0), second(v, "second_value", e)
    raw = cat(*features.powers(k2, order), dim=3)  # monomials with the weights that k has already
    raw = raw / cat(*features.powers(filled(1.0, k2.dtype, 1, 1, 1, d), order), dim=3)
    x, k = (bounded(y, site, order, limit, tolerance) for y in (wide(q), k))
    state = matmul(swap(site.kept(k)), cat(v, one, dim=3))
    state = repeated(state * matmul(swap(site.kept(raw)), cat(site.kept(v2), one, dim=3)), h)
    out = matmul(x, state)
    weight = slice_(out, dim=3, start=e, end=e + 1)
    return as_dtype(slice_(out, dim=3, start=0, end=e) / (weight + 1e-12), q.dtype)
