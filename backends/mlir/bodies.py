"""What this torch-mlir computes wrongly, or not at all, said in other ops of the IR."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...ir.core import OPS, Op, Value, building, elementwise
from ...ir.errors import IRError
from ...ir.graph import Graph
from ...ir.ops import elementwise as e
from ...ir.ops import reduce as r
from ...ir.ops import shape
from ...ir.ops.activation import as_dtype
from ...ir.ops.graph import const
from ...ir.types import bool_, broadcast, f32, i64, product

UNSAFE = frozenset({
    "pow.Tensor_Scalar", "fmod.Scalar", "all.dims", "all.dim", "sort.stable", "xlogy.Tensor",
    "xlogy.Scalar_Other", "xlogy.Scalar_Self", "prelu.default", "clamp.default",
    "clamp_min.default", "clamp_max.default", "hardtanh.default", "relu6.default",
    "hardsigmoid.default", "hardswish.default", "hardshrink.default", "softshrink.default",
    "logit.default", "nan_to_num.default", "logaddexp.default", "log_sigmoid.default",
    "threshold.default",
})  # fmt: skip
"""Overloads that torch-mlir parses and does not lower, or lowers to something else."""

BODIES: dict[str, Callable[..., Any]] = {}
"""By op name: `(values, **attrs) -> value(s)`, or None where the op itself is safe to write."""


def body(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function for these ops; it is told the op's OpDef first."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        BODIES.update(dict.fromkeys(names, function))
        return function

    return register


def respelled(op: Op) -> Graph | None:
    """The op in other words, as a graph over its operands; None when it is safe as it is."""
    function = BODIES.get(op.name)
    if function is None:
        return None
    with building():
        values = [
            None if v is None else OPS["input"](name=f"x{i}", type=v.type)
            for i, v in enumerate(op.inputs)
        ]
        known = [  # a number is told as one
            x if v is None or v.op.name != "const" else const(**v.op.attrs)
            for x, v in zip(values, op.inputs)
        ]
        results = function(op.defn, *known, **op.attrs)
    if results is None:
        return None
    outputs = (results,) if isinstance(results, Value) else tuple(results)
    if tuple(v.type for v in outputs) != op.types:
        raise IRError(f"{op!r} was respelled as {outputs}, it is {op.types}")
    return Graph(op.name, [v for v in values if v is not None], outputs)


def narrow(x: Value) -> bool:
    """Whether sums in the dtype of x lose digits: torch-mlir accumulates halves in halves."""
    return x.dtype.is_float and x.dtype.bits < 32


# ---- reductions ----------------------------------------------------------------------------------


@body("sum", "mean", "amax", "amin", "any", "vector_norm")
def over_axes(defn: Any, x: Value, *, dim: tuple[int, ...], keepdim: bool, **rest: Any) -> Any:
    """Half precisions accumulate in f32; the axes are named; a 0-d tensor is one of one element."""
    if not x.rank:
        return defn(shape.reshape(x, shape=(1,)), dim=(0,), keepdim=False, **rest)
    if not dim:
        return defn(x, dim=tuple(range(x.rank)), keepdim=keepdim, **rest)
    return widened(defn, x, dim=dim, keepdim=keepdim, **rest)


@body("prod", "cumsum", "cumprod")
def over_axis(defn: Any, x: Value, *, dim: int | None, **rest: Any) -> Any:
    """As `over_axes`, for what takes one axis."""
    if not x.rank or dim is None:
        kept = rest.pop("keepdim", False)
        flat = defn(shape.reshape(x, shape=(-1,)), dim=0, **rest)
        return shape.reshape(flat, shape=(1,) * x.rank if kept else ())
    return widened(defn, x, dim=dim, **rest)


def _if(name: str, rest: dict[str, Any], value: Any) -> dict[str, Any]:
    return {name: value} if name in rest else {}


def widened(defn: Any, x: Value, **attrs: Any) -> Any:
    """The op on x in f32, rounded at the end; None where x is wide enough."""
    dtype = attrs.get("dtype")
    if dtype is not None:
        return as_dtype(defn(as_dtype(x, dtype), **{**attrs, "dtype": None}), dtype)
    if not narrow(x) or defn.name in ("amax", "amin"):
        return None
    return e.cast(defn(e.cast(x, dtype=f32), **attrs), dtype=x.dtype)


@body("var", "std")
def variance(defn: Any, x: Value, *, dim: tuple[int, ...], correction: float, keepdim: bool) -> Any:
    """With fewer elements than the correction, torch divides by zero, torch-mlir by less."""
    axes = dim or tuple(range(x.rank))
    count = product(x.shape[a] for a in axes)
    if isinstance(count, int) and count > correction:
        return over_axes(defn, x, dim=dim, correction=correction, keepdim=keepdim)
    if not x.rank:
        return variance(defn, shape.reshape(x, shape=(1,)), dim=(0,), correction=correction, keepdim=False)
    y = as_dtype(x, f32) if narrow(x) else x
    y = y - r.mean(y, dim=axes, keepdim=True)
    y = r.sum_(y * y, dim=axes, keepdim=keepdim) / 0.0
    return as_dtype(e.sqrt(y) if defn.name == "std" else y, x.dtype)


@body("all")
def all_(defn: Any, x: Value, *, dim: tuple[int, ...], keepdim: bool) -> Any:
    """None is false."""
    return e.logical_not(r.any_(e.logical_not(x), dim=dim, keepdim=keepdim))


@body("logsumexp")
def logsumexp(defn: Any, x: Value, *, dim: tuple[int, ...], keepdim: bool) -> Any:
    """The largest taken out first, where it is finite."""
    axes = dim or tuple(range(x.rank))
    y = e.cast(x, dtype=f32) if narrow(x) else x
    if not x.rank:
        return x
    high = r.amax(y, dim=axes, keepdim=True)
    high = e.where(e.isfinite(high), high, 0.0)
    total = e.log(r.sum_(e.exp(y - high), dim=axes, keepdim=True)) + high
    wanted = r.reduced(x.type, axes, keepdim)
    return as_dtype(shape.reshape(total, shape=wanted), x.dtype)


@body("logcumsumexp")
def logcumsumexp(defn: Any, x: Value, *, dim: int) -> Any:
    """A logsumexp over each beginning: torch-mlir sums exponentials that may overflow."""
    if not x.rank:
        return x
    n, last = x.shape[dim], x.rank
    wide = shape.reshape(x, shape=(*x.shape[: dim + 1], 1, *x.shape[dim + 1 :]))
    rows = shape.expand(wide, size=(*x.shape[: dim + 1], n, *x.shape[dim + 1 :]))
    ones = shape.expand(const(value=True, dtype=bool_), size=(n, n))
    before = shape.reshape(shape.triu(ones), shape=(n, n, *(1,) * (last - dim - 1)))
    return r.logsumexp(e.where(before, rows, -math.inf), dim=(dim,))


@body("argmax", "argmin")
def place(defn: Any, x: Value, *, dim: int | None, keepdim: bool) -> Any:
    """Of floats, the first NaN, or else the first that equals the extremum: torch-mlir skips NaN."""
    if not x.rank or not x.dtype.is_float:
        return of_one_element(defn, x, dim=dim, keepdim=keepdim)
    best = r.amax if defn.name == "argmax" else r.amin
    found = e.eq(x, best(x, dim=() if dim is None else (dim,), keepdim=True))
    return r.argmax(e.cast(e.logical_or(e.isnan(x), found), dtype=i64), dim=dim, keepdim=keepdim)


@body("topk")
def topk(defn: Any, x: Value, *, k: int, dim: int, largest: bool, sorted: bool) -> Any:
    """The beginning of what is sorted: torch-mlir has topk in some forms only."""
    if not x.rank:
        return x, const(value=0, dtype=i64)
    found = r.sort(x, dim=dim, descending=largest)
    return tuple(shape.slice_(y, dim=dim, start=0, end=k) for y in found)


@body("sort", "softmax", "log_softmax", "flip")
def of_one_element(defn: Any, x: Value, **attrs: Any) -> Any:
    """A 0-d tensor is taken as one of one element, the others as they are."""
    if x.rank:
        if attrs.get("stable") is not None:
            return defn(x, **{**attrs, "stable": None})
        return None
    if defn.name == "flip":
        return x
    attrs = {**attrs, **_if("dim", attrs, 0), **_if("keepdim", attrs, False)}
    results = defn(shape.reshape(x, shape=(1,)), **attrs)
    many = (results,) if isinstance(results, Value) else results
    return tuple(shape.reshape(y, shape=()) for y in many)


@body("layer_norm", "rms_norm")
def norm(defn: Any, x: Value, *weights: Value | None, **attrs: Any) -> Any:
    """One call where everything has one dtype of 32 bits or more; else the body, which widens."""
    wanted = x.type.with_(shape=attrs["normalized_shape"])
    if narrow(x) or any(w is not None and w.type != wanted for w in weights):
        return defn.body(x, *weights, **attrs)
    return None


# ---- elementwise ---------------------------------------------------------------------------------


@body("gelu")
def gelu(defn: Any, x: Value, *, approximate: str) -> Any:
    """The tanh form has a constant that is off in the fourth digit."""
    return defn.body(x, approximate=approximate) if approximate == "tanh" else None


@body("erfc")
def erfc(defn: Any, x: Value) -> Any:
    """1 - erf: absolute, not relative, precision."""
    return 1.0 - e.erf(x)


@body("isfinite")
def isfinite(defn: Any, x: Value) -> Any:
    """NaN is not below infinity."""
    return e.lt(e.abs_(x), math.inf) if x.dtype.is_float else e.eq(x, x)


@body("isnan")
def isnan(defn: Any, x: Value) -> Any:
    """Integers never are."""
    return None if x.dtype.kind in "fc" else e.ne(x, x)


@body("isinf")
def isinf(defn: Any, x: Value) -> Any:
    """Integers never are."""
    return None if x.dtype.kind in "fc" else e.ne(x, x)


@body("hypot")
def hypot(defn: Any, a: Value, b: Value) -> Any:
    """The larger leg taken out, so that squares do not overflow; an infinite one outweighs NaN."""
    a, b = e.abs_(a), e.abs_(b)
    high, low = e.maximum(a, b), e.minimum(a, b)
    ratio = e.where(e.eq(high, low), 1.0, low / high)
    length = e.where(e.eq(high, 0), high, high * e.sqrt(ratio * ratio + 1.0))
    return e.where(e.logical_or(e.isinf(a), e.isinf(b)), math.inf, length)


@body("reciprocal")
def reciprocal(defn: Any, x: Value) -> Any:
    """torch-mlir ends the process at a zero."""
    return 1.0 / x


@body("fmod")
def fmod(defn: Any, a: Value, b: Value) -> Any:
    """What is left by infinity is all of it."""
    dtype = elementwise(a.type, b.type).dtype
    if not dtype.is_float:
        return None
    a, b = as_dtype(a, dtype), as_dtype(b, dtype)
    whole = e.logical_and(e.isinf(b), e.isfinite(a))
    return e.where(whole, a, a - e.trunc(a / b) * b)


@body("maximum", "minimum")
def extremum(defn: Any, a: Value, b: Value) -> Any:
    """torch-mlir drops a NaN that torch keeps, so floats are chosen by comparison."""
    if not (a.dtype.is_float or b.dtype.is_float):
        return None
    dtype = elementwise(a.type, b.type).dtype
    a, b = as_dtype(a, dtype), as_dtype(b, dtype)
    first = e.gt(a, b) if defn.name == "maximum" else e.lt(a, b)
    return e.where(e.logical_or(first, e.ne(a, a)), a, b)


@body("where")
def where(defn: Any, condition: Value, a: Value, b: Value) -> Any:
    """torch-mlir takes one value given twice as it is, not as large as the condition makes it."""
    wanted = broadcast(condition.shape, a.shape, b.shape)
    if a.shape != b.shape or a.shape == wanted:
        return None
    return e.where(condition, shape.expand(a, size=wanted), b)


@body("copysign")
def copysign(defn: Any, a: Value, b: Value) -> Any:
    """The sign of a NaN counts as positive."""
    size = as_dtype(e.abs_(a), elementwise(a.type, b.type).dtype)
    return e.where(negative(b), -size, size)


@body("signbit")
def signbit(defn: Any, x: Value) -> Any:
    """As for `copysign`."""
    return negative(x)


def negative(x: Value) -> Value:
    """Whether x is below zero, or is the zero whose reciprocal is."""
    below = e.lt(x, 0)
    return e.logical_or(below, e.lt(1.0 / x, 0.0)) if x.dtype.is_float else below


@body("lerp", "addcmul", "addcdiv")
def same_shapes(defn: Any, *values: Value, **attrs: Any) -> Any:
    """torch-mlir gets the shape from the first operand alone, or two of them."""
    if all(v.type == values[0].type for v in values):
        return None
    return defn.body(*values, **attrs)


@body("pow")
def power(defn: Any, a: Value, b: Value) -> Any:
    """Integers are multiplied out; the power of two tensors of integers stays without a word."""
    exponent, dtype = b.number, elementwise(a.type, b.type).dtype
    if dtype.is_float and (a.dtype is not dtype or b.dtype.kind in "bui"):
        return defn(as_dtype(a, dtype), as_dtype(b, dtype))
    if a.dtype.kind not in "ui" or not isinstance(exponent, int) or not 0 <= exponent < 64:
        return None
    result = None
    for bit in range(exponent.bit_length()):
        if exponent >> bit & 1:
            result = a if result is None else result * a
        a = a * a
    return e.where(e.eq(a, a), 1, a) if result is None else result
