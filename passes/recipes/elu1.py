"""Linear attention with the feature map elu(x) + 1."""

from . import features
from .pieces.linear import recurrence
from .recipe import MASKS, recipe


@recipe(paper="arXiv:2006.16236", kind="needs training", masks=MASKS, honours={"past"})
def elu1(q, k, v, site):
    "Transformers are RNNs: weights phi(q) . phi(k) with phi(x) = elu(x) + 1, normalised by row."
    k, v = site.kept(features.elu1(k)), site.kept(v)
    return recurrence(site, features.elu1(q), k, v, causal=site.causal, normalize=True, eps=1e-6)
