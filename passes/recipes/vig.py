"""ViG: gated linear attention from both ends over the tokens of a picture, and their neighbourhood."""

from __future__ import annotations

from ...ir import Value
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.elementwise import sigmoid
from ...ir.ops.linear_attention import linear_attention
from ...ir.ops.nonlinear import log_sigmoid
from ...ir.ops.norm import rms_norm
from ...ir.ops.shape import pad, slice_
from .pieces import grid_conv
from .pieces.gates import filled, flat, from_tokens, heads_of, repeated
from .pieces.order import joined_to, split
from .recipe import Mixing, recipe


def over_grid(site: Mixing, x: Value, name: str) -> Value:
    """Depthwise 3 x 3 convolution of x [b, h, n, d], first the identity; tokens before the grid stay."""
    channels = x.shape[1] * x.shape[3]
    start = pad(filled(1.0, x.dtype, channels, 1, 1), pad=(1, 1, 1, 1), value=0.0)
    first, rest = split(x, site.before)
    return joined_to(first, grid_conv(rest, site.learn(name, start), site.grid))


@recipe(
    paper="arXiv:2405.18425", kind="needs training", masks={"none"}, square=True, needs={"grid", "tokens"},
    learns={
        "conv": "the identity", "local": "the identity", "decay_down": "N(0, 1 / channels)",
        "decay_up": "0, so that decays do not read the tokens", "decay_bias": "0: states halve in 16 tokens",
        "mix": "0", "mix_bias": "4: 0.98 of the recurrence", "norm": "1", "local_norm": "1",
    },
)  # fmt: skip
def vig(q, k, v, site, *, rank: int = 16, temperature: float = 16.0):
    """ViG: the mean of gated linear attention from the first and the last token, mixed with what is near.

        o = rms((forward + backward) / 2) g + rms(conv v) (1 - g),  g = sigmoid(W u + b)

    ln a = logsigmoid(W2 W1 u + b) / temperature of each key feature, of its own either way; u is a
    3 x 3 depthwise convolution of the tokens. In the paper q, k and v are projected from u too and the
    neighbourhood is u itself; here q, k and v are as the model has them and the neighbourhood is of v.
    """
    (_, h, _, d), e = q.shape, v.shape[3]
    u = flat(over_grid(site, heads_of(site.tokens, 1), "conv"))
    decay = log_sigmoid(from_tokens(site, u, "decay", 2 * h * d, rank=rank, bias=0.0)) / temperature
    x, width = wide(q) * site.scale, h * d
    there = heads_of(slice_(decay, dim=2, start=0, end=width), h)
    back = heads_of(slice_(decay, dim=2, start=width, end=2 * width), h)
    total = linear_attention(x, k, v, there, causal=True, normalize=False)
    total = total + linear_attention(x, k, v, back, causal=True, normalize=False, reverse=True)
    near = repeated(wide(over_grid(site, v, "local")), h)
    o, near = (
        rms_norm(y, site.learn(name, filled(1.0, x.dtype, e)), normalized_shape=(e,), eps=1e-6)
        for y, name in ((total * 0.5, "norm"), (near, "local_norm"))
    )
    g = heads_of(sigmoid(from_tokens(site, u, "mix", h * e, bias=4.0)), h)
    return as_dtype(o * g + near * (1.0 - g), q.dtype)
