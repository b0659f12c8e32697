"""A softmax over the features of queries, and one over the tokens of keys."""

from ...ir.ops.activation import as_dtype, softmax, wide
from ...ir.ops.elementwise import where
from ...ir.ops.linear_attention import linear_attention
from ..masks import over_keys
from . import features
from .pieces import LOWEST
from .recipe import recipe


@recipe(paper="arXiv:1812.01243", kind="needs training", masks={"none", "padding"})
def efficient_attention(q, k, v, site):
    """Efficient attention: softmax over features of q times (softmax over tokens of k)^T v.

    Rows of weights sum to 1 with no division. Scores are not scaled.
    """
    k = wide(k)
    if site.padding is not None:
        k = where(over_keys(site.padding, k.shape[0], k.shape[2]), k, LOWEST)
    k = site.kept(softmax(k, dim=2))  # a sequence of padding alone has a softmax too
    out = linear_attention(features.softmax(wide(q)), k, site.kept(wide(v)), causal=False, normalize=False)
    return as_dtype(out, q.dtype)
