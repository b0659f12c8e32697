"""Activations and softmax, each defined by its body."""

import numpy as np

from ..attributes import Axis
from ..core import Value
from ..declare import Float, composite
from ..errors import IRError
from ..types import DType, f32
from . import elementwise as e
from . import reduce as r


def as_dtype(x: Value, dtype: DType) -> Value:
    """x cast to dtype; x itself when it has it."""
    return x if x.dtype is dtype else e.cast(x, dtype=dtype)


def wide(x: Value) -> Value:
    """x in a dtype wide enough to sum and exponentiate in: f32, or x's own where it is wider."""
    return as_dtype(x, f32) if x.dtype.is_float and x.dtype.bits < 32 else x


def _softmax(x: np.ndarray, *, dim: int) -> np.ndarray:
    if not x.ndim:
        return np.where(np.isfinite(x), 1.0, np.nan)
    if not x.shape[dim]:
        return x
    shifted = np.exp(x - np.max(x, axis=dim, keepdims=True))
    return shifted / np.sum(shifted, axis=dim, keepdims=True)


@composite(aten=("softmax.int", "_softmax.default"), numpy=_softmax,
           flops=lambda x, **_: 5 * x.size)  # fmt: skip
def softmax(x: Float, *, dim: Axis):
    "exp(x) along dim, divided by its sum; NaN where every x is -inf."
    y = wide(x)
    shifted = e.exp(y - r.amax(y, dim=dim, keepdim=True))
    return as_dtype(shifted / r.sum_(shifted, dim=dim, keepdim=True), x.dtype)


def _log_softmax(x: np.ndarray, *, dim: int) -> np.ndarray:
    if not x.ndim:
        return np.where(np.isfinite(x), 0.0, np.nan)
    if not x.shape[dim]:
        return x
    shifted = x - np.max(x, axis=dim, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=dim, keepdims=True))


@composite(aten=("log_softmax.int", "_log_softmax.default"), numpy=_log_softmax,
           flops=lambda x, **_: 5 * x.size)  # fmt: skip
def log_softmax(x: Float, *, dim: Axis):
    "The logarithm of softmax, computed without underflow."
    y = wide(x)
    shifted = y - r.amax(y, dim=dim, keepdim=True)
    return as_dtype(shifted - e.log(r.sum_(e.exp(shifted), dim=dim, keepdim=True)), x.dtype)


@composite(aten="silu.default")
def silu(x: Float):
    "x * sigmoid(x), also called swish."
    return x * e.sigmoid(x)


@composite(aten="gelu.default")
def gelu(x: Float, *, approximate: str = "none"):
    'x times the normal distribution function of x; approximate="tanh" for the cubic tanh form.'
    if approximate == "tanh":
        # (2 / pi) ** 0.5, as torch and Hugging Face write it
        return (x * 0.5) * (e.tanh((x + e.pow(x, 3.0) * 0.044715) * 0.7978845608028654) + 1.0)
    if approximate != "none":
        raise IRError(f"approximate={approximate!r}: it is 'none' or 'tanh'")
    return (x * 0.5) * (e.erf(x * 0.7071067811865476) + 1.0)


@composite
def swiglu(gate: Float, up: Float):
    "silu(gate) * up, the gated unit of Llama (arXiv:2002.05202)."
    return silu(gate) * up


@composite
def geglu(gate: Float, up: Float, *, approximate: str = "none"):
    "gelu(gate) * up (arXiv:2002.05202)."
    return gelu(gate, approximate=approximate) * up
