"""Normalised linear attention whose queries and keys a small network has added to."""

from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.linear import matmul
from ...ir.ops.nonlinear import leaky_relu
from ...ir.ops.norm import layer_norm
from ...ir.ops.reduce import sum_
from ...ir.ops.shape import reshape
from . import features
from .pieces.gates import filled
from .pieces.linear import linear_sums, uniform
from .pieces.parts import ones, zeros
from .recipe import recipe

PARTS = {
    "down": "uniform, by its width", "down_bias": "0", "norm": "1", "norm_bias": "0",
    "up": "0: q and k as they are", "up_bias": "0",
}  # fmt: skip


@recipe(
    paper="arXiv:2409.02097", kind="needs training", masks={"none", "padding"}, square=True,
    needs={"tokens"},
    learns={f"{of}_{part}": start for of in ("query", "key") for part, start in PARTS.items()},
)  # fmt: skip
def linfusion(q, k, v, site, *, width: int = 0):
    """LinFusion: phi(q + f(x)) . (sum_j phi(k_j + f'(x_j)) v_j / N) / (phi(q + f(x)) . mean(phi) + 1e-4).

    phi(x) = elu(x) + 1, f(x) = leaky_relu(norm(x A + a)) B + b of the block's tokens, N the number
    of keys. width: of A, by default as many as x has channels (the paper's for SD 1.5 and 2.1; a
    sixteenth of them for SDXL). The paper adds f to x before the projections; here it is added after
    them, as what the projection makes of it. Scores are not scaled.
    """
    b, n, c = site.tokens.shape
    m = width or c
    x = reshape(wide(site.tokens), shape=(b, 1, n, c))

    def phi(y, of):
        def learn(part, start):
            return as_dtype(site.learn(f"{of}_{part}", start), x.dtype)

        h, d = y.shape[1], y.shape[3]
        z = matmul(x, learn("down", uniform(q.dtype, c, m, within=c**-0.5)))
        z = z + learn("down_bias", zeros(q.dtype, m))
        gain, bias = learn("norm", filled(1.0, q.dtype, m)), learn("norm_bias", zeros(q.dtype, m))
        z = leaky_relu(layer_norm(z, gain, bias, normalized_shape=(m,)))
        z = matmul(z, learn("up", zeros(q.dtype, h, m, d))) + learn("up_bias", zeros(q.dtype, h, 1, d))
        return features.elu1(wide(y) + z)

    keys = site.kept(phi(site.kept(k), "key"))
    value, weight = linear_sums(phi(q, "query"), keys, site.kept(wide(v)), padding=site.padding)
    count = sum_(ones(keys, site.padding), dim=(2,), keepdim=True)
    return as_dtype(value / (weight + count * 1e-4), q.dtype)
