"""Random features of the softmax kernel."""

import math

from ...ir import RecipeError
from ...ir.ops.activation import as_dtype, wide
from . import features as maps
from .pieces.linear import recurrence
from .recipe import ALL, CAUSAL, recipe


@recipe(paper="arXiv:2009.14794", kind="needs training", masks=ALL | CAUSAL, honours={"past"})
def performer(q, k, v, site, *, features: int = 0, kernel: str = "softmax", gaussian: bool = True):
    """FAVOR+: m random features a head, orthogonal in blocks, drawn once; m = d ln d by default.

        softmax  phi(x) = m^-1/2 (exp(w^T x' - |x'|^2 / 2 - shift) + 1e-6),  x' = x sqrt(scale)
        relu     phi(x) = relu(w^T x') + 1e-3

    phi(q) . phi(k) is exp(scale q . k) in expectation under the first, another kernel under the second,
    which trains better. The shift is the greatest exponent of a query, and of all keys together; causal
    keys take none, for a later key would change earlier outputs through the 1e-6. gaussian: directions
    as long as Gaussian ones rather than sqrt(d).
    """
    d = q.shape[3]
    count = features or max(1, int(d * math.log(d)))
    w = site.fixed("directions", maps.orthogonal(count, d, gaussian=gaussian))
    x, k, v = wide(q), site.kept(wide(k)), site.kept(wide(v))
    if kernel == "softmax":
        x = maps.favor(x, w, scale=site.scale, shift="row")
        shift = "none" if site.causal else "all"
        k = maps.favor(k, w, scale=site.scale, shift=shift, padding=site.padding)
    elif kernel == "relu":
        root, eps = math.sqrt(site.scale), 1e-3 * count**-0.5  # the map divides by sqrt(m) before eps
        x, k = maps.rectified(x * root, w, eps=eps), maps.rectified(k * root, w, eps=eps)
    else:
        raise RecipeError(f"kernel={kernel!r}: it is 'softmax' or 'relu'")
    out = recurrence(site, x, site.kept(k), v, causal=site.causal, normalize=True, eps=1e-12)
    return as_dtype(out, q.dtype)
