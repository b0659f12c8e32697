"""A learned map of each head, made positive by a softmax over its features."""

from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.linear_attention import linear_attention
from . import features
from .pieces.linear import identities
from .pieces.parts import zeros
from .recipe import ALL, recipe


@recipe(
    paper="arXiv:2402.04347", kind="needs training", masks=ALL,
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
    out = linear_attention(x, k, site.kept(wide(v)), causal=site.causal, normalize=True, eps=1e-12)
    return as_dtype(out, q.dtype)
