"""Random rectified features of queries and keys whose Haar levels the tokens have weighed."""

from ...ir.ops.activation import as_dtype, gelu, wide
from ...ir.ops.elementwise import relu, sigmoid
from ...ir.ops.linear import matmul
from ...ir.ops.linear_attention import linear_attention
from ...ir.ops.nonlinear import softplus
from ...ir.ops.norm import layer_norm
from ...ir.ops.random import randn
from ...ir.ops.shape import reshape
from ...ir.types import f32
from . import features as maps
from .pieces import filtered, token_conv, zeros
from .pieces.gates import filled
from .pieces.linear import uniform
from .recipe import recipe


@recipe(
    paper="arXiv:2507.08637", kind="needs training", masks={"none", "padding"}, square=True,
    needs={"tokens"},
    learns={
        "conv": "uniform, by its width", "conv_bias": "0", "hidden": "uniform, by its width",
        "hidden_bias": "0", "gain": "uniform, by its width", "gain_bias": "0", "level": "0.5",
        "bandwidth": "0", "norm": "1", "norm_bias": "0",
    },
)  # fmt: skip
def wersa(q, k, v, site, *, levels: int = 2, features: int = 128, width: int = 33):
    """WERSA: o = norm(phi(q) . phi'(k) v, normalised by row), phi(x) = relu(w^T x~ / s) / sqrt(features).

    x~ is gelu(x) with the Haar coefficients of level i, along the tokens, times level_i F_i;
    F = sigmoid(relu(conv(x) A + a) B + b) of the block's tokens x, conv depthwise over `width` of them;
    s = softplus(bandwidth) + 0.1, which the normaliser cancels but for its 1e-6. w is drawn once, another
    for keys than for queries: their product estimates no kernel of scores, and what it does has to be
    trained. A Haar level mixes tokens both ways.
    """
    (b, n, c), (d, e) = site.tokens.shape, (q.shape[3], v.shape[3])
    hidden = max(c // 4, 1)
    wide_type = wide(q).dtype

    def learn(name, start):
        return as_dtype(site.learn(name, start), wide_type)

    x = site.kept(wide(reshape(site.tokens, shape=(b, 1, n, c))))
    conv = learn("conv", uniform(q.dtype, 1, c, width, within=width**-0.5))
    x = token_conv(x, conv, bias=learn("conv_bias", zeros(q.dtype, 1, c)))
    x = relu(
        matmul(x, learn("hidden", uniform(q.dtype, c, hidden, within=c**-0.5)))
        + learn("hidden_bias", zeros(q.dtype, hidden))
    )
    x = matmul(x, learn("gain", uniform(q.dtype, hidden, levels + 1, within=hidden**-0.5)))
    gains = sigmoid(x + learn("gain_bias", zeros(q.dtype, levels + 1)))
    gains = gains * learn("level", filled(0.5, q.dtype, levels + 1))
    spread = softplus(learn("bandwidth", zeros(q.dtype, 1))) + 0.1

    def phi(y, name):
        w = site.fixed(name, as_dtype(randn(size=(d, features), dtype=f32, key=1) * d**-0.5, q.dtype))
        return maps.rectified(filtered(gelu(site.kept(wide(y))), gains, levels) / spread, w)

    out = linear_attention(phi(q, "query_directions"), site.kept(phi(k, "key_directions")),
                           site.kept(wide(v)), causal=False, normalize=True, eps=1e-6)  # fmt: skip
    gain, bias = learn("norm", filled(1.0, q.dtype, e)), learn("norm_bias", zeros(q.dtype, e))
    return as_dtype(layer_norm(out, gain, bias, normalized_shape=(e,)), q.dtype)
