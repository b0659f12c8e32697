"""One form for each meaning, so that later passes look for one spelling instead of many.

Every rule here holds for signed zeros, infinities and NaN too. What would be true for numbers only
(`x * 0`, `x + 0.0` on -0.0, folding two scales into one, which may overflow) is left as it is.
"""

from __future__ import annotations

import math

from ..ir import Graph, Rule, Value, rewrite, rule
from ..ir.core import elementwise
from ..ir.ops.elementwise import (
    add,
    cast,
    div,
    eq,
    ge,
    gt,
    le,
    logical_and,
    logical_not,
    lt,
    mul,
    ne,
    neg,
    pow,
    reciprocal,
    rsqrt,
    sqrt,
    sub,
    where,
)  # fmt: skip
from ..ir.ops.linear import linear, matmul
from ..ir.ops.reduce import amax, mean, sum_
from ..ir.ops.shape import cat, expand, permute, reshape, slice_
from ..ir.types import DType
from .pipeline import pass_

# ---- moving elements -----------------------------------------------------------------------------


@rule(lambda x, *, a, b: permute(permute(x, dims=a), dims=b))
def permute_of_permute(x, *, a, b):
    "Two transposes in a row are one."
    return permute(x, dims=tuple(a[i] for i in b))


@rule(lambda x, *, dims: permute(x, dims=dims))
def permute_of_nothing(x, *, dims):
    "A transpose that only moves axes of size 1 is a reshape; one that moves nothing goes."
    if dims == tuple(range(x.rank)):
        return x
    moved = [i for i in dims if x.shape[i] != 1]
    return reshape(x, shape=[x.shape[i] for i in dims]) if moved == sorted(moved) else None


@rule(lambda x, *, a, b: reshape(reshape(x, shape=a), shape=b))
def reshape_of_reshape(x, *, a, b):
    "Only the last of two reshapes shows."
    return reshape(x, shape=b)


@rule(lambda x, *, shape: reshape(x, shape=shape))
def reshape_to_same(x, *, shape):
    "A reshape to the shape that is there already."
    return x if shape == x.shape else None


@rule(lambda x, *, dims, shape: reshape(permute(x, dims=dims), shape=shape))
def split_before_permute(x, *, dims, shape):
    """A reshape that only splits axes of a transposed tensor is a transpose of the split tensor.

    Heads end up split off the projection, as in `x.view(b, n, h, d).transpose(1, 2)`.
    """
    parts = _split([x.shape[i] for i in dims], shape)
    if parts is None or len(shape) <= x.rank or any(1 in part for part in parts):
        return None
    inner = [parts[dims.index(i)] for i in range(x.rank)]
    starts = [sum(map(len, inner[:i])) for i in range(x.rank)]
    order = [starts[i] + j for i in dims for j in range(len(inner[i]))]
    return permute(reshape(x, shape=[d for part in inner for d in part]), dims=order)


def _split(axes, shape):
    """For each axis the dims of `shape` that make it up, in order; None if they do not line up."""
    parts, rest = [], list(shape)
    for axis in axes:
        part = [rest.pop(0)] if rest else []
        size = part[0] if part else 0
        while size != axis and rest:
            part.append(rest.pop(0))
            size = size * part[-1]
        if size != axis:
            return None
        parts.append(tuple(part))
    return None if rest else parts


@rule(lambda x, *, size: expand(x, size=size))
def expand_of_nothing(x, *, size):
    "An expand that repeats nothing: the value itself, or a reshape that adds axes of size 1."
    if size == x.shape:
        return x
    lead = len(size) - x.rank
    return reshape(x, shape=size) if size == (1,) * lead + x.shape else None


@rule(lambda x, *, a, b: expand(expand(x, size=a), size=b))
def expand_of_expand(x, *, a, b):
    "Only the last of two expands shows; its -1 keeps what the first made."
    lead = len(b) - len(a)
    return expand(x, size=[a[i - lead] if d == -1 else d for i, d in enumerate(b)])


@rule(lambda x, *, dim, end: slice_(x, dim=dim, start=0, end=end, step=1))
def slice_of_all(x, *, dim, end):
    "A slice that takes everything."
    return x if end == x.shape[dim] else None


@rule(
    lambda x, *, dim, a, b, c, d: slice_(
        slice_(x, dim=dim, start=a, end=b), dim=dim, start=c, end=d
    )
)
def slice_of_slice(x, *, dim, a, b, c, d):
    "A slice of a slice along the same axis is one."
    return slice_(x, dim=dim, start=a + c, end=a + d)


@rule(lambda x, *, dim: cat(x, dim=dim))
def cat_of_one(x, *, dim):
    "A concatenation of one tensor."
    return x


# ---- dtypes --------------------------------------------------------------------------------------


@rule(lambda x, *, dtype: cast(x, dtype=dtype))
def cast_to_same(x, *, dtype):
    "A cast to the dtype that is there already."
    return x if x.dtype is dtype else None


@rule(lambda x, *, a, b: cast(cast(x, dtype=a), dtype=b))
def cast_of_cast(x, *, a, b):
    "Two casts are one when the first loses nothing."
    return cast(x, dtype=b) if holds_all(x.dtype, a) else None


_MANTISSA = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}


def holds_all(source: DType, target: DType) -> bool:
    """Whether every value of `source` is a value of `target`."""
    if source is target or source.kind == "b":
        return source is target or target.kind in "uif"
    if source.kind in "ui" and target.kind in "uif":
        bits = source.bits - (source.kind == "i")
        if target.is_float:
            return bits <= _MANTISSA[target.name]
        if source.kind == "i" and target.kind == "u":
            return False
        return bits <= target.bits - (target.kind == "i")
    wider = {"f16": ("f32", "f64"), "bf16": ("f32", "f64"), "f32": ("f64",)}
    return target.name in wider.get(source.name, ())


# ---- arithmetic ----------------------------------------------------------------------------------


def _is(x: Value, number: float) -> bool:
    return x.number is not None and x.number == number


def _leaves(x: Value, *others: Value) -> bool:
    """Whether elementwise arithmetic of x with `others` has x's own type."""
    return elementwise(x.type, *(o.type for o in others)) == x.type


@rule(lambda x, c: x * c)
def times_one(x, c):
    "x * 1."
    return x if _is(c, 1) and _leaves(x, c) and x.dtype.kind != "b" else None


@rule(lambda x, c: x / c)
def divided_by_one(x, c):
    "x / 1; integers would become floats."
    return x if _is(c, 1) and _leaves(x, c) and x.dtype.kind in "fc" else None


@rule(lambda x, c: x + c)
def plus_zero(x, c):
    "x + 0 for integers, x + -0.0 for floats (-0.0 + 0.0 is 0.0)."
    negative = c.number is not None and math.copysign(1, c.number) < 0
    if not _is(c, 0) or not _leaves(x, c) or (x.dtype.kind not in "ui" and not negative):
        return None
    return x


@rule(lambda x, c: x - c)
def minus_zero(x, c):
    "x - 0, for floats only with +0.0."
    if not _is(c, 0) or not _leaves(x, c):
        return None
    return x if x.dtype.kind in "ui" or math.copysign(1, c.number) > 0 else None


@rule(lambda x, c: x * c)
def times_minus_one(x, c):
    "x * -1 is -x."
    return neg(x) if _is(c, -1) and x.dtype.kind in "if" and _leaves(x, c) else None


@rule(lambda x: neg(neg(x)))
def negated_twice(x):
    "-(-x)."
    return x


@rule(lambda x, y: x + neg(y))
def plus_negated(x, y):
    "x + -y is x - y; not for an integer 0, which has no sign to give to -0.0."
    return x - y if x.dtype.kind == y.dtype.kind else None


@rule(lambda x, y: sub(x, neg(y)))
def minus_negated(x, y):
    "x - -y is x + y; not for an integer 0."
    return x + y if x.dtype.kind == y.dtype.kind else None


@rule(lambda x, c: x / c)
def divided_by_power_of_two(x, c):
    "x / 2**k is x * 2**-k, exactly; other constants stay, for their inverse is rounded."
    number = c.number
    if not x.dtype.is_float or not number or not math.isfinite(number) or not _leaves(x, c):
        return None
    mantissa, exponent = math.frexp(number)
    return x * (1.0 / number) if abs(mantissa) == 0.5 and -14 < exponent < 16 else None


@rule(lambda x: div(1, x))
def one_over(x):
    "1 / x has a name."
    return reciprocal(x) if x.dtype.is_float else None


@rule(lambda x: reciprocal(sqrt(x)))
def one_over_root(x):
    "1 / sqrt(x) has a name."
    return rsqrt(x)


@rule(lambda x, c: pow(x, c))
def small_power(x, c):
    "x ** 2 is x * x, x ** 1 is x."
    if c.number is None or not _leaves(x, c) or x.dtype.kind not in "uif":
        return None
    return x * x if c.number == 2 else x if c.number == 1 else None


def _ordered(op):
    """A rule that puts the constant operand of a commutative op second."""

    def after(a, b):
        return op(b, a) if a.number is not None and b.number is None else None

    after.__name__ = f"constant_second_in_{op.name}"
    after.__doc__ = f"{op.name} takes its constant second."
    return rule(lambda a, b: op(a, b))(after)


# ---- comparisons and choice ----------------------------------------------------------------------


@rule(lambda a, b: gt(a, b))
def greater_as_less(a, b):
    "a > b is b < a; a constant stays second."
    return lt(b, a) if b.number is None else None


@rule(lambda a, b: ge(a, b))
def greater_equal_as_less_equal(a, b):
    "a >= b is b <= a; a constant stays second."
    return le(b, a) if b.number is None else None


@rule(lambda a, b: lt(a, b))
def less_than_constant_first(a, b):
    "c < x is x > c."
    return gt(b, a) if a.number is not None and b.number is None else None


@rule(lambda a, b: le(a, b))
def less_equal_constant_first(a, b):
    "c <= x is x >= c."
    return ge(b, a) if a.number is not None and b.number is None else None


@rule(lambda x: logical_not(logical_not(x)))
def not_not(x):
    "Two negations."
    return x


@rule(lambda a, b: logical_not(eq(a, b)))
def not_equal(a, b):
    "not a == b is a != b, for NaN too."
    return ne(a, b)


@rule(lambda a, b: logical_not(ne(a, b)))
def not_unequal(a, b):
    "not a != b is a == b, for NaN too."
    return eq(a, b)


@rule(lambda x: logical_and(x, x))
def and_itself(x):
    "x and x."
    return x


@rule(lambda c, a, b: where(logical_not(c), a, b))
def where_not(c, a, b):
    "A negated condition exchanges the branches."
    return where(c, b, a)


@rule(lambda c, x: where(c, x, x))
def where_same(c, x):
    "Both branches are the same."
    return x if elementwise(c.type, x.type, dtype=x.dtype) == x.type else None


# ---- products and sums ---------------------------------------------------------------------------


@rule(lambda x, w: matmul(x, permute(w, dims=(1, 0))))
def matmul_as_linear(x, w):
    "x @ w^T with a matrix w is a linear layer."
    if x.dtype is not w.dtype or w.rank != 2 or w.op.name != "param":
        return None
    return linear(x, w)


@rule(lambda x, w, b: add(linear(x, w), b))
def bias_into_linear(x, w, b):
    "A vector of the right length added to a linear layer is its bias."
    if b.op.name != "param" or b.type != w.type.with_(shape=w.shape[:1]) or x.dtype is not b.dtype:
        return None
    return linear(x, w, b)


def _explicit(op, **attrs):
    """A rule that spells out an empty `dim`, which means every axis."""

    def after(x):
        return op(x, dim=tuple(range(x.rank)), **attrs) if x.rank else None

    after.__name__ = f"{op.name}_over_all"
    after.__doc__ = f"{op.name} over all axes names them."
    return rule(lambda x: op(x, dim=(), **attrs))(after)


RULES: tuple[Rule, ...] = (
    permute_of_permute, permute_of_nothing, reshape_of_reshape, reshape_to_same,
    split_before_permute, expand_of_nothing, expand_of_expand, slice_of_all, slice_of_slice,
    cat_of_one, cast_to_same, cast_of_cast, times_one, divided_by_one, plus_zero, minus_zero,
    times_minus_one, negated_twice, plus_negated, minus_negated, divided_by_power_of_two, one_over,
    one_over_root, small_power, _ordered(add), _ordered(mul), _ordered(eq), _ordered(ne),
    greater_as_less, greater_equal_as_less_equal, less_than_constant_first,
    less_equal_constant_first, not_not, not_equal, not_unequal, and_itself, where_not, where_same,
    matmul_as_linear, bias_into_linear,
    _explicit(sum_), _explicit(mean), _explicit(amax),
)  # fmt: skip
"""Every rule of the pass, in the order they are tried."""


@pass_(rules=RULES)
def canonicalize(graph: Graph, *, only: tuple[str, ...] = ()) -> Graph:
    """One form for each meaning; changes no result. only: names of rules."""
    return rewrite(graph, [r for r in RULES if not only or r.name in only])
