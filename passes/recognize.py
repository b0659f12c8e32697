"""Raise spelled-out subgraphs to composite ops: norms, activations, rotary positions, softmax.

Rules meet canonical forms (`x ** 2` is `x * x`, `1 / sqrt` is `rsqrt`, constants second) and work
from the operands up: `y * rsqrt(...)` becomes a norm without weight, which a weight then joins.
"""

from __future__ import annotations

import math

from ..ir import Graph, No, Rule, Value, rewrite, rule
from ..ir.ops.activation import geglu, gelu, log_softmax, silu, softmax, swiglu
from ..ir.ops.attention import rope
from ..ir.ops.elementwise import (
    add,
    cast,
    div,
    erf,
    exp,
    log,
    mul,
    neg,
    pow,
    reciprocal,
    rsqrt,
    sigmoid,
    sqrt,
    tanh,
)  # fmt: skip
from ..ir.ops.norm import layer_norm, rms_norm
from ..ir.ops.reduce import amax, mean, sum_
from ..ir.ops.shape import cat, slice_
from .pipeline import pass_

# ---- norms ---------------------------------------------------------------------------------------


def _trailing(x: Value, dim: tuple[int, ...], eps: float) -> tuple | No:
    """The normalised shape, when `dim` are the last axes and eps an ordinary number."""
    if not dim or dim != tuple(range(x.rank - len(dim), x.rank)):
        return No(f"it normalises axes {dim} of {x.rank}, not the last ones", x)
    if not 0 <= eps < math.inf:
        return No(f"eps is {eps}", x)
    return x.shape[-len(dim) :]


# LlamaRMSNorm, T5LayerNorm: hidden * rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps)
@rule(
    lambda y, *, d, eps: y * rsqrt(mean(y * y, dim=d, keepdim=True) + eps),
    lambda y, *, d, eps: y / sqrt(mean(y * y, dim=d, keepdim=True) + eps),
    lambda y, *, d, eps: y * pow(mean(y * y, dim=d, keepdim=True) + eps, -0.5),
)
def recognize_rms_norm(y, *, d, eps):
    "y over its root mean square."
    shape = _trailing(y, d, eps)
    return rms_norm(y, normalized_shape=shape, eps=eps) if shape else shape


@rule(
    lambda x, *, d, shape, eps: rms_norm(
        x - mean(x, dim=d, keepdim=True), normalized_shape=shape, eps=eps
    )
)
def recognize_layer_norm(x, *, d, shape, eps):
    "The root mean square of x less its mean is its standard deviation."
    if d != tuple(range(x.rank - len(shape), x.rank)):
        return No(f"the mean is over axes {d}, the norm over the last {len(shape)}", x)
    return layer_norm(x, normalized_shape=shape, eps=eps)


def _fits(x: Value, w: Value, shape: tuple) -> bool:
    return w.shape == shape and w.dtype is x.dtype


@rule(lambda x, w, *, shape, eps: rms_norm(x, normalized_shape=shape, eps=eps) * w)
def rms_norm_weight(x, w, *, shape, eps):
    "A norm without weight, times one."
    return rms_norm(x, w, normalized_shape=shape, eps=eps) if _fits(x, w, shape) else None


@rule(lambda x, w, *, shape, eps: layer_norm(x, normalized_shape=shape, eps=eps) * w)
def layer_norm_weight(x, w, *, shape, eps):
    "A norm without weight, times one."
    return layer_norm(x, w, normalized_shape=shape, eps=eps) if _fits(x, w, shape) else None


@rule(lambda x, w, b, *, shape, eps: layer_norm(x, w, normalized_shape=shape, eps=eps) + b)
def layer_norm_bias(x, w, b, *, shape, eps):
    "A norm without bias, plus one."
    return layer_norm(x, w, b, normalized_shape=shape, eps=eps) if _fits(x, b, shape) else None


# hidden.to(float32) ... .to(input_dtype): a norm does that by itself
@rule(lambda x, *, a, b, shape, eps: cast(
    rms_norm(cast(x, dtype=a), normalized_shape=shape, eps=eps), dtype=b))  # fmt: skip
def rms_norm_between_casts(x, *, a, b, shape, eps):
    "A norm of narrow x computed in f32 is the norm of x, which computes in f32."
    return rms_norm(x, normalized_shape=shape, eps=eps) if _narrow(x, a, b) else None


@rule(lambda x, w, *, a, b, shape, eps: cast(
    rms_norm(cast(x, dtype=a), w, normalized_shape=shape, eps=eps), dtype=b))  # fmt: skip
def weighted_rms_norm_between_casts(x, w, *, a, b, shape, eps):
    "The same with a weight of x's dtype, itself cast or not."
    w = w.op.args[0] if w.op.name == "cast" else w
    if not _narrow(x, a, b) or w.dtype is not b:
        return None
    return rms_norm(x, w, normalized_shape=shape, eps=eps)


def _narrow(x, a, b) -> bool:
    return x.dtype is b and b.is_float and b.bits < 32 and a.name == "f32"


# ---- activations ---------------------------------------------------------------------------------


@rule(lambda x: reciprocal(exp(neg(x)) + 1))
def recognize_sigmoid(x):
    "1 / (1 + exp(-x))."
    return sigmoid(x)


@rule(lambda x: x * sigmoid(x), lambda x: x / (exp(neg(x)) + 1))
def recognize_silu(x):
    "x times its sigmoid."
    return silu(x)


def _near(value: float, wanted: float) -> bool:
    return isinstance(value, float) and math.isclose(value, wanted, rel_tol=1e-10)


_HALVES = (
    lambda x, t: (x * 0.5) * (t + 1),  # NewGELUActivation: 0.5 * x * (1 + tanh(...))
    lambda x, t: (x * (t + 1)) * 0.5,
    lambda x, t: x * ((t + 1) * 0.5),
)
_CUBICS = (
    lambda x, a, b: (x + pow(x, 3) * b) * a,
    lambda x, a, b: (x + ((x * x) * x) * b) * a,
    lambda x, a, b: (x + ((x * b) * x) * x) * a,
    lambda x, a, b: (x * a) * ((x * b) * x + 1),  # FastGELUActivation
)


def _tanh_spelling(half, cubic):
    return lambda x, *, a, b: half(x, tanh(cubic(x, a, b)))


@rule(*(_tanh_spelling(half, cubic) for half in _HALVES for cubic in _CUBICS))
def recognize_gelu_tanh(x, *, a, b):
    "x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."
    if not (_near(a, math.sqrt(2 / math.pi)) and _near(b, 0.044715)):
        return No(f"{a} and {b} are not the constants of gelu", x)
    return gelu(x, approximate="tanh")


def _erf_spelling(half, times):
    inner = (lambda x, a: x * a) if times else (lambda x, a: x / a)
    return lambda x, *, a: half(x, erf(inner(x, a)))


@rule(*(_erf_spelling(half, True) for half in _HALVES))
def recognize_gelu_erf(x, *, a):
    "x/2 (1 + erf(x sqrt(1/2)))."
    return gelu(x) if _near(a, math.sqrt(0.5)) else No(f"erf of x * {a} is not gelu", x)


@rule(*(_erf_spelling(half, False) for half in _HALVES))
def recognize_gelu_erf_divided(x, *, a):
    "x/2 (1 + erf(x / sqrt(2)))."
    return gelu(x) if _near(a, math.sqrt(2)) else No(f"erf of x / {a} is not gelu", x)


@rule(lambda gate, up: silu(gate) * up)
def recognize_swiglu(gate, up):
    "silu(gate) * up."
    return swiglu(gate, up) if gate.type == up.type else None


@rule(lambda gate, up, *, a: gelu(gate, approximate=a) * up)
def recognize_geglu(gate, up, *, a):
    "gelu(gate) * up."
    return geglu(gate, up, approximate=a) if gate.type == up.type else None


# ---- softmax -------------------------------------------------------------------------------------


def _shifted(x, d):
    return x - amax(x, dim=d, keepdim=True)


@rule(lambda x, *, d: div(exp(_shifted(x, d)), sum_(exp(_shifted(x, d)), dim=d, keepdim=True)))
def recognize_softmax(x, *, d):
    "exp(x - max) over its sum."
    if len(d) != 1:
        return No(f"it sums over axes {d}, softmax over one", x)
    return softmax(x, dim=d[0])


@rule(lambda x, *, d: div(exp(x), sum_(exp(x), dim=d, keepdim=True)))
def softmax_without_maximum(x, *, d):
    "Refused: exp(x) over its sum overflows where softmax does not."
    if x.op.name == "sub" and x.op.args[1].op.name == "amax":
        return None  # the rule above has said what there is to say
    return No("exp(x) / sum(exp(x)) overflows for large x where softmax does not", x)


@rule(lambda x, *, d: _shifted(x, d) - log(sum_(exp(_shifted(x, d)), dim=d, keepdim=True)))
def recognize_log_softmax(x, *, d):
    "x - max - log(sum(exp(x - max)))."
    return log_softmax(x, dim=d[0]) if len(d) == 1 else None


# ---- rotary positions ----------------------------------------------------------------------------


# apply_rotary_pos_emb (modeling_llama.py): (q * cos) + (rotate_half(q) * sin)
@rule(
    lambda x, cos, sin, *, d, h, e: x * cos
    + cat(neg(slice_(x, dim=d, start=h, end=e)), slice_(x, dim=d, start=0, end=h), dim=d) * sin
)
def recognize_rope(x, cos, sin, *, d, h, e):
    "x * cos + rotate_half(x) * sin."
    if d != x.rank - 1:
        return No(f"it rotates axis {d} of {x.rank}, not the last", x)
    if e != x.shape[-1] or h * 2 != e:
        return No(f"it exchanges {h} and {e - h} features of {x.shape[-1]}, not the halves", x)
    whole = add(mul(x, cos), mul(x, sin))
    return rope(x, cos, sin) if whole.type == x.type else No("cos and sin widen x", x)


# the same on some of the features (GPT-NeoX, Phi): a slice of a slice is one slice by now
@rule(
    lambda x, cos, sin, *, d, s, m, e: slice_(x, dim=d, start=s, end=e) * cos
    + cat(neg(slice_(x, dim=d, start=m, end=e)), slice_(x, dim=d, start=s, end=m), dim=d) * sin
)
def recognize_partial_rope(x, cos, sin, *, d, s, m, e):
    "part * cos + rotate_half(part) * sin for a part of the features."
    if d != x.rank - 1 or m - s != e - m:
        return No(f"it rotates features {s} to {e} around {m} along axis {d}", x)
    part = slice_(x, dim=d, start=s, end=e)
    whole = add(mul(part, cos), mul(part, sin))
    return rope(part, cos, sin) if whole.type == part.type else No("cos and sin widen x", x)


RULES: tuple[Rule, ...] = (
    recognize_rms_norm, recognize_layer_norm, rms_norm_weight, layer_norm_weight, layer_norm_bias,
    rms_norm_between_casts, weighted_rms_norm_between_casts, recognize_sigmoid, recognize_silu,
    recognize_gelu_tanh, recognize_gelu_erf, recognize_gelu_erf_divided, recognize_swiglu,
    recognize_geglu, recognize_softmax, softmax_without_maximum, recognize_log_softmax,
    recognize_rope, recognize_partial_rope,
)  # fmt: skip
"""Every rule of the pass, in the order they are tried."""


@pass_(rules=RULES)
def recognize(graph: Graph, *, only: tuple[str, ...] = ()) -> Graph:
    """Raise spelled-out subgraphs to composite ops; changes no result. only: names of rules."""
    return rewrite(graph, [r for r in RULES if not only or r.name in only])
