"""Softmax to first order, and a convolution whose kernel is made from the tokens."""

from ...ir import RecipeError
from ...ir.ops.activation import as_dtype, gelu, wide
from ...ir.ops.linear import matmul
from ...ir.ops.reduce import mean
from ...ir.ops.shape import reshape
from . import features
from .agent import plane
from .pieces import dynamic_conv, zeros
from .pieces.gates import repeated
from .pieces.linear import uniform
from .recipe import recipe
from .taylor1 import taylor1


@recipe(
    paper="arXiv:2412.06590", kind="approximate", masks={"none"}, square=True, needs={"grid", "tokens"},
    learns={"hidden": "uniform, by its width", "hidden_bias": "0", "kernel": "0: no convolution",
            "kernel_bias": "0"},
)  # fmt: skip
def inline(q, k, v, site, *, kernel: str = "identity"):
    """InLine attention: weights 1 / N + s phi(q) . (phi(k) - mean phi(k)) / N, plus DWC(v).

    Rows sum to 1 and weights may be negative. The 3 x 3 kernels of the depthwise convolution are each
    sample's own: gelu(mean(x) W + b) W' + b' of the block's tokens, W and W' within heads. Class and
    register tokens mix as the others do and get no convolution. kernel: phi, one of the plain maps.
    """
    (b, _, c), h, e = site.tokens.shape, q.shape[1], v.shape[3]
    if kernel not in features.PLAIN:
        raise RecipeError(f"kernel={kernel!r}: it is one of {', '.join(features.PLAIN)}")
    if not isinstance(c, int) or c % h:
        raise RecipeError(f"it makes its kernels within heads, and {h} heads do not divide {c} channels")
    phi, d = features.PLAIN[kernel], c // h
    mixed = taylor1(phi(wide(q)), phi(wide(k)), wide(v), site)

    def layer(x, name, out, start):
        w, bias = site.learn(name, start), site.learn(f"{name}_bias", zeros(q.dtype, h, 1, out))
        return matmul(x, as_dtype(w, x.dtype)) + as_dtype(bias, x.dtype)

    x = reshape(mean(wide(site.tokens), dim=(1,), keepdim=True), shape=(b, h, 1, d))
    x = gelu(layer(x, "hidden", d, uniform(q.dtype, h, d, d, within=d**-0.5)))
    w = reshape(layer(x, "kernel", 9 * e, zeros(q.dtype, h, d, 9 * e)), shape=(b, h, e, 3, 3))
    near = dynamic_conv(repeated(wide(v), h), w, plane(site), before=site.before)
    return as_dtype(mixed + near, q.dtype)
