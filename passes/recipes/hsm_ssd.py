"""EfficientViM's mixer: a few states gather from all tokens, are mixed by channel, and are read out."""

from __future__ import annotations

from ...ir import Dim, RecipeError, Value
from ...ir.ops.activation import as_dtype, silu, softmax, wide
from ...ir.ops.attention import swap
from ...ir.ops.index import eye
from ...ir.ops.linear import matmul
from ...ir.ops.shape import cat, reshape, slice_
from ...ir.types import DType
from .pieces import grid_conv, zeros
from .pieces.gates import filled, flat, from_tokens, heads_of, repeated
from .pieces.order import joined_to, split
from .recipe import Mixing, recipe


@recipe(
    paper="arXiv:2411.15241", kind="needs training", masks={"none"}, square=True, needs={"grid", "tokens"},
    learns={
        "bcdt": "N(0, 1 / channels)", "conv": "the identity", "hz": "the identity for h, 0 for z", "D": "1",
        "out": "the identity over the root of the number of states",
    },
)  # fmt: skip
def hsm_ssd(q, k, v, site, *, states: int = 49):
    """Hidden-state mixer: H = V^T (softmax_tokens(dt) B), [h z] = W_hz H, O = C (W_out (h silu(z) + D h))^T.

    B, C and dt [n, states] are a 3 x 3 depthwise convolution over the grid of projected tokens; class
    tokens are not convolved. All heads are one. The values are those of the model, where
    the paper has the tokens themselves; its A is left out, as it cancels in the softmax.
    """
    if states < 1:
        raise RecipeError(f"states={states}: at least one")
    h, e, x = q.shape[1], v.shape[3], site.tokens
    c = h * e
    bcdt = convolved(site, from_tokens(site, x, "bcdt", 3 * states, random=True))
    b, read, dt = (slice_(bcdt, dim=2, start=i * states, end=(i + 1) * states) for i in range(3))
    values = wide(flat(repeated(v, h)))
    hidden = matmul(swap(values), softmax(dt, dim=1) * b)  # [b, c, states]
    hz = matmul(weight(site, "hz", cat(eye(n=c, m=c, dtype=q.dtype), zeros(q.dtype, c, c))), hidden)
    hidden, z = (slice_(hz, dim=1, start=i * c, end=(i + 1) * c) for i in range(2))
    hidden = hidden * silu(z) + weight(site, "D", filled(1.0, q.dtype, 1)) * hidden
    hidden = matmul(weight(site, "out", eye(n=c, m=c, dtype=q.dtype) * states**-0.5), hidden)
    return as_dtype(heads_of(matmul(read, swap(hidden)), h), q.dtype)


def weight(site: Mixing, name: str, start: Value) -> Value:
    """What is learned, in f32 or wider."""
    found = site.learn(name, start)
    return as_dtype(found, wide(found).dtype)


def convolved(site: Mixing, x: Value) -> Value:
    """x [b, n, c] convolved over the grid by a kernel of 3 x 3 for each channel, class tokens as they are."""
    b, n, c = x.shape
    w = site.learn("conv", centre(x.dtype, c))
    first, _ = split(reshape(x, shape=(b, 1, n, c)), site.before)
    y = grid_conv(reshape(x, shape=(b, 1, n, c)), w, site.grid, before=site.before)
    _, y = split(y, site.before)
    return reshape(joined_to(first, y), shape=(b, n, c))


def centre(dtype: DType, channels: Dim) -> Value:
    """[channels, 3, 3] kernels that change nothing."""
    row = cat(zeros(dtype, 4), filled(1.0, dtype, 1), zeros(dtype, 4))
    return reshape(row, shape=(1, 3, 3)) * filled(1.0, dtype, channels, 1, 1)
