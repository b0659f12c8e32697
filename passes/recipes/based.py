"""The second Taylor polynomial of the exponential, alone on few features or as a tail on all."""

import math

from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.elementwise import cos, maximum
from ...ir.ops.index import arange
from ...ir.ops.reduce import sum_
from ...ir.ops.shape import expand, reshape
from . import features as maps
from .pieces import far, linear_part, merge, windowed
from .pieces.linear import recurrence
from .pieces.parts import ones
from .recipe import ALL, MASKS, recipe


@recipe(
    paper="arXiv:2402.18668", kind="needs training", masks=MASKS, honours={"past"},
    learns={"query": "the lowest cosines over the features, per head", "key": "the same, per key head"},
)  # fmt: skip
def based(q, k, v, site, *, features: int = 16):
    """Based: weights 1 + s + s^2 / 2, s = scale (q A) . (k B), with A and B down to `features` a head.

    1 + f + f (f + 1) / 2 products a token, 153 for f = 16. Positive, whatever s is. A and B start as
    the first f of d orthonormal cosines, scaled so that s keeps its variance.
    """
    d = q.shape[3]
    f = min(features, d)

    def phi(x, name):
        return maps.taylor(maps.learned(wide(x), site.learn(name, _cosines(x.shape[1], d, f, q.dtype))),
                           order=2, scale=site.scale)  # fmt: skip

    x, k = phi(q, "query"), site.kept(phi(site.kept(k), "key"))
    out = recurrence(site, x, k, site.kept(wide(v)), causal=site.causal, normalize=True, eps=1e-12)
    return as_dtype(out, q.dtype)


def _cosines(h, d, f, dtype):
    """w [h, d, f] = sqrt(2 / f) cos(pi (i + 1/2) (j + 1/2) / d), alike for all heads; w w^T = 1 if f = d."""
    i, j = (arange(start=0, end=n, dtype=dtype) + 0.5 for n in (d, f))
    table = cos(reshape(i, shape=(d, 1)) * j * (math.pi / d)) * math.sqrt(2 / f)
    return expand(table, size=(h, d, f))


@recipe(paper="", kind="approximate", masks=ALL, square=True)
def taylor2(q, k, v, site, *, size: int = 64, centred: bool = True):
    """Exact softmax over the own and the neighbouring blocks of `size`, 1 + s + s^2 / 2 for all other keys.

    Both under one normaliser: e^s near by and its polynomial further off are on one scale, so nothing
    has to be trained. centred: keys less their mean, which no softmax notices and which makes s small;
    where a row sees all keys, that is not where causal. 1 + d + d (d + 1) / 2 products a token.
    """
    k = site.kept(wide(k))
    if centred and not site.causal:
        count = maximum(sum_(ones(k, site.padding), dim=(2,), keepdim=True), 1.0)
        k = site.kept(k - sum_(k, dim=(2,), keepdim=True) / count)
    here = dict(size=size, causal=site.causal, padding=site.padding)
    near = windowed(q, k, v, scale=site.scale, **here)
    x, y = (maps.taylor(wide(z), order=2, scale=site.scale) for z in (q, k))
    return merge(near, linear_part(*far(x, y, v, **here)), dtype=q.dtype)
