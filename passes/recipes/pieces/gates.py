"""What a recurrence takes from the tokens: decays, write strengths, gates; and what they start from.

Weights are asked of the site. A gate starts open and a decay at a half-life of its own, whatever
the tokens are: the weights that read the tokens start at 0.
"""

from __future__ import annotations

import math

from ....ir import OPS, RecipeError, Value
from ....ir.dims import Dim
from ....ir.ops.activation import as_dtype, silu, wide
from ....ir.ops.elementwise import exp, log
from ....ir.ops.linear import linear
from ....ir.ops.nonlinear import softplus
from ....ir.ops.norm import rms_norm
from ....ir.ops.random import rand, randn
from ....ir.ops.reduce import sum_
from ....ir.ops.shape import cat, expand, permute, reshape
from ....ir.types import DType, f32, i64
from ..recipe import Mixing
from .grid import token_conv
from .parts import zeros

OPEN = 1.2784645427610738
"""silu(OPEN) = 1: what a gate adds to its tokens at the start."""


def filled(value: float, dtype: DType, *shape: Dim) -> Value:
    """A tensor of one number."""
    return expand(OPS["const"](value=value, dtype=dtype), size=shape)


def heads_of(x: Value, h: Dim) -> Value:
    """x [b, n, h * d] as [b, h, n, d]."""
    b, n, c = x.shape
    return permute(reshape(x, shape=(b, n, h, c // h)), dims=(0, 2, 1, 3))


def flat(x: Value) -> Value:
    """x [b, h, n, d] as [b, n, h * d]."""
    b, h, n, d = x.shape
    return reshape(permute(x, dims=(0, 2, 1, 3)), shape=(b, n, h * d))


def repeated(x: Value, h: Dim) -> Value:
    """x [b, g, n, d] with each head repeated to h heads."""
    b, g, n, d = x.shape
    if g == h:
        return x
    each = expand(reshape(x, shape=(b, g, 1, n, d)), size=(b, g, h // g, n, d))
    return reshape(each, shape=(b, h, n, d))


def from_tokens(
    site: Mixing, x: Value, name: str, out: Dim, *, bias: Value | float | None = None, rank: int = 0,
    random: bool = False,
) -> Value:  # fmt: skip
    """x [b, n, c] times a learned matrix, [b, n, out] in f32 or wider, plus a learned bias if there is one.

    The matrix `name` [out, c] starts at 0; with rank it is `name`_up [out, rank] times `name`_down
    [rank, c], and only the former starts at 0. random: N(0, 1 / c) instead of 0.
    bias: what `name`_bias [out] starts from.
    """
    if rank:
        down = site.learn(f"{name}_down", _normal(x.dtype, rank, x.shape[2]))
        x, name_up = linear(x, down), f"{name}_up"
    else:
        name_up = name
    start = _normal(x.dtype, out, x.shape[2]) if random else zeros(x.dtype, out, x.shape[2])
    y = wide(linear(x, site.learn(name_up, start)))
    if bias is None:
        return y
    start = bias if isinstance(bias, Value) else filled(bias, y.dtype, out)
    return y + as_dtype(site.learn(f"{name}_bias", start), y.dtype)


def _normal(dtype: DType, out: Dim, c: Dim) -> Value:
    width = c if isinstance(c, int) else 1
    return as_dtype(randn(size=(out, c), dtype=f32, key=1) * width**-0.5, dtype)


def at_tokens(site: Mixing, x: Value) -> Value:
    """x [b, n, h], one number a head, as [b, h, n], 0 at padded tokens: neutral as log decay and beta."""
    b, n, h = x.shape
    y = reshape(permute(x, dims=(0, 2, 1)), shape=(b, h, n, 1))
    return reshape(site.kept(y), shape=(b, h, n))


def step_start(dtype: DType, count: Dim, *, low: float = 1e-3, high: float = 1e-1) -> Value:
    """[count], the inverse softplus of steps drawn log-uniformly from low to high (arXiv:2405.21060)."""
    step = exp(rand(size=(count,), dtype=dtype, key=1) * math.log(high / low) + math.log(low))
    return step + log(1.0 - exp(-step))


def half_life_start(half_life: float) -> float:
    """The bias of a step softplus(bias) that halves a state in `half_life` tokens where A = -1."""
    return math.log(math.expm1(min(max(math.log(2) / half_life, 1e-3), 5.0)))


def log_decay(site: Mixing, x: Value, *, bias: Value | float) -> Value:
    """-exp(A_log) softplus(x + dt_bias) of x [b, n, h], [b, n, h]; A_log starts at 0, dt_bias at `bias`."""
    h, dtype = x.shape[2], x.dtype
    start = bias if isinstance(bias, Value) else filled(bias, dtype, h)
    step = softplus(x + as_dtype(site.learn("dt_bias", start), dtype))
    return -exp(as_dtype(site.learn("A_log", zeros(dtype, h)), dtype)) * step


def unit(x: Value, eps: float = 1e-6) -> Value:
    """x [b, h, n, d] over its length, x / sqrt(|x|^2 + eps)."""
    y = wide(x)
    return y / OPS["sqrt"](sum_(y * y, dim=(3,), keepdim=True) + eps)


def short_conv(site: Mixing, x: Value, name: str, width: int, *, act: bool = True) -> Value:
    """Causal depthwise convolution of x [b, h, n, d], then silu if `act`.

    Its weight `name` [h, d, width] starts as the identity. Raises RecipeError for a width below 1.
    """
    if width < 1:
        raise RecipeError(f"a convolution of {width} tokens: 1 at least")
    h, d = x.shape[1], x.shape[3]
    start = cat(zeros(x.dtype, h, d, width - 1), filled(1.0, x.dtype, h, d, 1), dim=2)
    apart = site.segments(x.shape[0])
    x = token_conv(x, site.learn(name, start), causal=True, padding=site.padding, segments=apart)
    return silu(x) if act else x


def normed(site: Mixing, o: Value, eps: float = 1e-5) -> Value:
    """RMS norm of each head of o [b, h, n, e] with one weight [e], starting at 1."""
    e = o.shape[3]
    o = wide(o)
    return rms_norm(o, site.learn("norm", filled(1.0, o.dtype, e)), normalized_shape=(e,), eps=eps)


def gated(site: Mixing, o: Value, x: Value) -> Value:
    """o [b, h, n, e] times silu(W x + b), of the tokens x [b, n, c]; it starts as o itself."""
    (_, h, _, e), o = o.shape, wide(o)
    return o * as_dtype(heads_of(silu(from_tokens(site, x, "gate", h * e, bias=OPEN)), h), o.dtype)


def places(count: Dim, dtype: DType) -> Value:
    """[count]: 0, 1, 2, ..."""
    return as_dtype(OPS["arange"](start=0, end=count, dtype=i64), dtype)
