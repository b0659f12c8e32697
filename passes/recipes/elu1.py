"""Linear attention with the feature map elu(x) + 1."""

from ...ir import Value
from ...ir.ops.attention import linear_attention
from ...ir.ops.elementwise import exp, minimum, relu
from .recipe import ALL, recipe


def positive(x: Value) -> Value:
    """elu(x) + 1: exp(x) below zero, x + 1 above."""
    return relu(x) + exp(minimum(x, 0.0))


@recipe(paper="arXiv:2006.16236", kind="needs training", masks=ALL)
def elu1(q, k, v, site):
    "Transformers are RNNs: weights phi(q) . phi(k) with phi(x) = elu(x) + 1, normalised by row."
    k, v = site.kept(positive(k)), site.kept(v)
    return linear_attention(positive(q), k, v, causal=site.causal, normalize=True, eps=1e-6)
