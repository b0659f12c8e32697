"""Rectified queries and keys, and a convolution of the values over the grid."""

from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.elementwise import relu
from ...ir.ops.linear_attention import linear_attention
from .agent import plane
from .pieces import grid_conv, zeros
from .pieces.gates import repeated
from .recipe import recipe


@recipe(
    paper="arXiv:2405.11582", kind="needs training", masks={"none"}, square=True, needs={"grid"},
    learns={"positions": "0", "conv": "0: no convolution", "conv_bias": "0"},
)  # fmt: skip
def sla(q, k, v, site, *, width: int = 5):
    """SLAB's simplified linear attention: weights relu(q) . relu(k + P), normalised by row, plus DWC(v).

    P is a learned position for each token. DWC: depthwise width x width, its e kernels shared by all
    heads. Scores are not scaled. A query without a positive entry gets the convolution alone.
    Class and register tokens, which the paper has none of, mix as the others do and get no convolution.
    """
    (rows, columns), (_, g, n, d), e = plane(site), k.shape, v.shape[3]
    positions = site.learn("positions", zeros(q.dtype, 1, g, n, d))
    x, k, v = relu(wide(q)), relu(wide(k + positions)), wide(v)
    mixed = linear_attention(x, k, v, causal=False, normalize=True, eps=1e-6)
    w, bias = site.learn("conv", zeros(q.dtype, e, width, width)), site.learn("conv_bias", zeros(q.dtype, e))
    near = grid_conv(v, w, (rows, columns), bias=bias, before=site.before)
    return as_dtype(mixed + repeated(near, q.shape[1]), q.dtype)
