"""Exact softmax near by and a learned linear attention to the rest, mixed by a learned factor."""

from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.elementwise import gt, sigmoid, where
from . import features
from .pieces import LOWEST, Part, far, linear_part, merge, windowed
from .pieces.gates import filled, repeated
from .pieces.linear import identities
from .recipe import ALL, recipe


@recipe(
    paper="arXiv:2410.10254", kind="needs training", masks=ALL, square=True,
    learns={"query": "the identity, per head", "key": "the identity, per query head",
            "mix": "logit of 0.1, per head"},
)  # fmt: skip
def lolcats(q, k, v, site, *, size: int = 64, width: int = 0, kind: str = "sliding", affine: bool = False):
    """LoLCATs: softmax over a window, Hedgehog features for what lies outside, one normaliser.

        o = (g sum_near e^(s - m) v + sum_far w v) / (g sum_near e^(s - m) + sum_far w),  w = phi(q) . phi(k)

    with s = scale q . k, m the greatest s of the window and g = sigmoid(mix); affine: the far sums
    times 1 - g. phi(x) = [softmax(x W), softmax(-x W)]. The two do not share their exponential scale,
    so it has to be trained. kind: "sliding", |i - j| < size, or "terraced", the own and the neighbouring
    blocks of `size`.
    """
    h, d = q.shape[1], q.shape[3]
    f = width or d

    def phi(x, name):
        return features.hedgehog(wide(x), site.learn(name, identities(h, d, f, q.dtype)))

    mix = wide(sigmoid(site.learn("mix", filled(-2.197, q.dtype, h, 1, 1))))
    here = dict(size=size, causal=site.causal, kind=kind, padding=site.padding)
    near = windowed(q, k, v, scale=site.scale, **here)
    near = Part(near.numerator * mix, where(gt(near.level, 0.5 * LOWEST), 0.0, LOWEST), near.total * mix)
    keys, values = repeated(site.kept(k), h), repeated(v, h)
    rest = far(phi(q, "query"), phi(keys, "key"), values, **here)
    if affine:
        rest = tuple(x * (1.0 - mix) for x in rest)
    return as_dtype(merge(near, linear_part(*rest)), q.dtype)
