"""A learned map of each head, made positive by a softmax over its features."""

from ...ir.ops.activation import as_dtype, wide
from . import features
from .pieces.linear import identities, recurrence
from .pieces.parts import zeros
from .recipe import MASKS, recipe


@recipe(
    paper="arXiv:2402.04347", kind="needs training", masks=MASKS, honours={"past"},
    learns={"query": "the identity, per head", "query_bias": "0", "key": "the identity, per head",
            "key_bias": "0"},
)  # fmt: skip
def hedgehog(q, k, v, site):
    """Hedgehog: weights phi(q) . phi(k), phi(x) = softmax([y, -y]) with y = 2 (x W + b), normalised by row.

    One softmax over both signs, 2d features; W and b of each query head and of each key head.
    """

    def phi(x, name):
        h, d = x.shape[1], x.shape[3]
        w = site.learn(name, identities(h, d, d, q.dtype))
        return features.hedgehog_joint(wide(x), w, site.learn(f"{name}_bias", zeros(q.dtype, h, 1, d)))

    x, k = phi(q, "query"), site.kept(phi(site.kept(k), "key"))
    out = recurrence(site, x, k, site.kept(wide(v)), causal=site.causal, normalize=True, eps=1e-12)
    return as_dtype(out, q.dtype)
