"""Nystrom attention: softmax through landmarks and the inverse of their own attention."""

from __future__ import annotations

from ...ir import RecipeError
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.attention import attention
from ...ir.ops.linear import matmul
from .pieces import affinity, pseudo_inverse, segment_means, token_conv, zeros
from .pieces.gates import repeated
from .recipe import recipe


@recipe(
    paper="arXiv:2102.03902", kind="approximate", masks={"none", "padding"}, square=True,
    learns={"conv": "0: no convolution (none is learned where conv=0)"},
)  # fmt: skip
def nystrom(q, k, v, site, *, landmarks: int = 64, iterations: int = 6, conv: int = 33):
    """Nystromformer: O = F1 pinv(F2) (F3 V) + conv(V), with F the softmax of scores between

        F1: queries and key landmarks, F2: landmarks of both, F3: query landmarks and keys.

    Landmarks are means over `landmarks` segments of the sequence; padded tokens have no part in them.
    pinv takes `iterations` steps of third order. conv: the width of a depthwise convolution of values
    along the tokens, one kernel a head, 0 for none. With as many landmarks as tokens it tends to the softmax.
    """
    if landmarks < 1 or iterations < 0 or conv < 0:
        given = f"landmarks={landmarks}, iterations={iterations}, conv={conv}"
        raise RecipeError(f"{given}: at least one landmark, and no negative numbers")
    h, n = q.shape[1:3]
    count = min(landmarks, n) if isinstance(n, int) else landmarks
    k, v = site.kept(k), site.kept(v)
    few_q, _ = segment_means(q, count, site.padding)
    few_k, alive = segment_means(k, count, site.padding)
    to_landmarks = affinity(q, few_k, scale=site.scale, padding=alive)
    among = affinity(few_q, few_k, scale=site.scale, padding=alive)
    gathered = attention(few_q, k, v, site.padding, scale=site.scale)
    inverse = pseudo_inverse(among, iterations=iterations, alive=alive)
    out = matmul(to_landmarks, matmul(inverse, as_dtype(gathered, inverse.dtype)))
    if conv:
        w = site.learn("conv", zeros(q.dtype, h, 1, conv))
        out = out + wide(token_conv(repeated(v, h), w, padding=site.padding))
    return as_dtype(out, q.dtype)
