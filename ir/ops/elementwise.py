"""One result element from the elements at the same place, with broadcasting."""

import math

import numpy as np

from ..core import elementwise as elementwise_type
from ..declare import (
    Arithmetic,
    Bits,
    Boolean,
    Numeric,
    Ordered,
    Real,
    RealNumeric,
    Tensor,
    binary,
    op,
    unary,
)
from ..errors import IRError
from ..types import DTYPES, DType, TensorType, bool_, f32


def _each(function):
    """A function of Python floats over arrays."""
    return np.vectorize(function, otypes=[float])


def _whole(function):
    """A rounding function that leaves integers exactly as they are."""
    return lambda x, **attrs: x if x.dtype.kind in "ui" else function(x, **attrs)


neg = unary("neg", numpy=np.negative, aten="neg.default", kinds=Numeric)
sign = unary("sign", numpy=np.sign, aten=("sign.default", "sgn.default"), kinds=RealNumeric)
exp = unary("exp", numpy=np.exp, aten="exp.default", triton="tl.exp({x})")
exp2 = unary("exp2", numpy=np.exp2, aten="exp2.default", kinds=Real, triton="tl.exp2({x})")
expm1 = unary("expm1", numpy=np.expm1, aten="expm1.default", kinds=Real)
log = unary("log", numpy=np.log, aten="log.default", triton="tl.log({x})")
log2 = unary("log2", numpy=np.log2, aten="log2.default", kinds=Real, triton="tl.log2({x})")
log10 = unary("log10", numpy=np.log10, aten="log10.default", kinds=Real)
log1p = unary("log1p", numpy=np.log1p, aten="log1p.default", kinds=Real)
sqrt = unary("sqrt", numpy=np.sqrt, aten="sqrt.default", triton="tl.sqrt({x})")
rsqrt = unary("rsqrt", numpy=lambda x: 1 / np.sqrt(x), aten="rsqrt.default", triton="tl.rsqrt({x})")
reciprocal = unary("reciprocal", numpy=lambda x: 1 / x, aten="reciprocal.default")
sin = unary("sin", numpy=np.sin, aten="sin.default", triton="tl.sin({x})")
cos = unary("cos", numpy=np.cos, aten="cos.default", triton="tl.cos({x})")
tan = unary("tan", numpy=np.tan, aten="tan.default", kinds=Real)
asin = unary("asin", numpy=np.arcsin, aten="asin.default", kinds=Real)
acos = unary("acos", numpy=np.arccos, aten="acos.default", kinds=Real)
atan = unary("atan", numpy=np.arctan, aten="atan.default", kinds=Real)
sinh = unary("sinh", numpy=np.sinh, aten="sinh.default", kinds=Real)
cosh = unary("cosh", numpy=np.cosh, aten="cosh.default", kinds=Real)
tanh = unary("tanh", numpy=np.tanh, aten="tanh.default")
asinh = unary("asinh", numpy=np.arcsinh, aten="asinh.default", kinds=Real)
acosh = unary("acosh", numpy=np.arccosh, aten="acosh.default", kinds=Real)
atanh = unary("atanh", numpy=np.arctanh, aten="atanh.default", kinds=Real)
erf = unary("erf", numpy=_each(math.erf), aten="erf.default", kinds=Real, triton="tl.erf({x})")
erfc = unary("erfc", numpy=_each(math.erfc), aten="erfc.default", kinds=Real)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


sigmoid = unary("sigmoid", numpy=_sigmoid, aten="sigmoid.default", kinds=Real, triton="tl.sigmoid({x})")
relu = unary("relu", numpy=lambda x: np.where(x < 0, 0, x), aten="relu.default", kinds=RealNumeric)
floor = unary("floor", numpy=_whole(np.floor), aten="floor.default", kinds=RealNumeric)
ceil = unary("ceil", numpy=_whole(np.ceil), aten="ceil.default", kinds=RealNumeric)
trunc = unary("trunc", numpy=_whole(np.trunc), aten=("trunc.default", "fix.default"), kinds=RealNumeric)
frac = unary("frac", numpy=lambda x: x - np.trunc(x), aten="frac.default", kinds=Real)


@op(aten=("round.default", "round.decimals"), numpy=_whole(np.round))
def round_(x: RealNumeric, *, decimals: int = 0):
    "x to so many decimals, halves to even."
    return x


@op(aten="abs.default", numpy=np.abs)
def abs_(x: Numeric):
    "The magnitude; real for complex x."
    return x if x.dtype.kind != "c" else x.with_(dtype=DTYPES[f"f{x.dtype.bits // 2}"])


# ---- arithmetic ----------------------------------------------------------------------------------

add = binary("add", numpy=np.add, aten=("add.Tensor", "add.Scalar"), commutative=True, kinds=Arithmetic)
mul = binary("mul", numpy=np.multiply, aten=("mul.Tensor", "mul.Scalar"), commutative=True, kinds=Arithmetic)
sub = binary("sub", numpy=np.subtract, aten=("sub.Tensor", "sub.Scalar"), kinds=Numeric)
maximum = binary("maximum", numpy=np.maximum, aten=("maximum.default", "max.other"), commutative=True,
                 kinds=Ordered)  # fmt: skip
minimum = binary("minimum", numpy=np.minimum, aten=("minimum.default", "min.other"), commutative=True,
                 kinds=Ordered)  # fmt: skip
fmod = binary("fmod", numpy=np.fmod, aten=("fmod.Scalar", "fmod.Tensor"), kinds=RealNumeric)
remainder = binary("remainder", numpy=np.remainder, kinds=RealNumeric,
                   aten=("remainder.Scalar", "remainder.Scalar_Tensor", "remainder.Tensor"))  # fmt: skip
atan2 = binary("atan2", numpy=np.arctan2, aten="atan2.default", kinds=Real)
hypot = binary("hypot", numpy=np.hypot, aten="hypot.default", kinds=Real)
copysign = binary("copysign", numpy=np.copysign, aten=("copysign.Scalar", "copysign.Tensor"), kinds=Real)


def _divide(a: np.ndarray, b: np.ndarray, *, rounding_mode: str | None) -> np.ndarray:
    whole = a.dtype.kind in "bui" and b.dtype.kind in "bui"
    if rounding_mode is None:
        return np.true_divide(a, b)
    if whole:
        down = np.floor_divide(a, b)
        return down if rounding_mode == "floor" else down + ((down < 0) & (down * b != a))
    if rounding_mode == "trunc":
        return np.trunc(np.true_divide(a, b))
    return np.where(b == 0, np.true_divide(a, b), np.floor_divide(a, b))


@op(aten=("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode"), numpy=_divide)
def div(a: Arithmetic, b: Arithmetic, *, rounding_mode: str | None = None):
    'a / b; integers divide to f32 unless rounding_mode is "floor" or "trunc".'
    result = elementwise_type(a, b)
    if rounding_mode is None:
        return result if result.dtype.kind in "fc" else result.with_(dtype=f32)
    if rounding_mode not in ("floor", "trunc") or result.dtype.kind in "cb":
        raise IRError(f"cannot divide {result.dtype} with rounding_mode={rounding_mode!r}")
    return result


def _pow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind in "bui" and b.dtype.kind in "bui":
        dtype = np.result_type(a, b)
        exact = np.power(a.astype(dtype), np.maximum(b, 0).astype(dtype))
        inverse = np.where(a == 1, 1, np.where(a == -1, 1 - 2 * (b % 2), 0))
        return np.where(b < 0, inverse, exact)
    return np.power(a, b)


@op(aten=("pow.Tensor_Scalar", "pow.Scalar", "pow.Tensor_Tensor"), numpy=_pow)
def pow(a: Arithmetic, b: Arithmetic):
    "a to the power b."
    return elementwise_type(a, b)


# ---- comparison and logic ------------------------------------------------------------------------

eq = binary("eq", numpy=np.equal, aten=("eq.Scalar", "eq.Tensor"), result=bool_, commutative=True,
            kinds=Arithmetic)  # fmt: skip
ne = binary("ne", numpy=np.not_equal, aten=("ne.Scalar", "ne.Tensor"), result=bool_, commutative=True,
            kinds=Arithmetic)  # fmt: skip
lt = binary("lt", numpy=np.less, aten=("lt.Scalar", "lt.Tensor"), result=bool_, kinds=Ordered)
le = binary("le", numpy=np.less_equal, aten=("le.Scalar", "le.Tensor"), result=bool_, kinds=Ordered)
gt = binary("gt", numpy=np.greater, aten=("gt.Scalar", "gt.Tensor"), result=bool_, kinds=Ordered)
ge = binary("ge", numpy=np.greater_equal, aten=("ge.Scalar", "ge.Tensor"), result=bool_, kinds=Ordered)


def _spelt(name: str, *more: str) -> tuple[str, ...]:
    """The overloads of a bitwise operation: the function's and the operator's."""
    names = (f"bitwise_{name}", f"__{name}__")
    return (*more, *(f"{n}.{kind}" for n in names for kind in ("Tensor", "Scalar")))


logical_and = binary("logical_and", numpy=np.logical_and, aten=_spelt("and", "logical_and.default"),
                     kinds=Boolean, result=bool_, commutative=True)  # fmt: skip
logical_or = binary("logical_or", numpy=np.logical_or, aten=_spelt("or", "logical_or.default"),
                    kinds=Boolean, result=bool_, commutative=True)  # fmt: skip
logical_xor = binary("logical_xor", numpy=np.logical_xor, aten=_spelt("xor", "logical_xor.default"),
                     kinds=Boolean, result=bool_, commutative=True)  # fmt: skip
logical_not = unary("logical_not", numpy=np.logical_not, kinds=Boolean,
                    aten=("logical_not.default", "bitwise_not.default"))  # fmt: skip
bitwise_and = binary("bitwise_and", numpy=np.bitwise_and, aten=_spelt("and"), kinds=Bits, commutative=True)
bitwise_or = binary("bitwise_or", numpy=np.bitwise_or, aten=_spelt("or"), kinds=Bits, commutative=True)
bitwise_xor = binary("bitwise_xor", numpy=np.bitwise_xor, aten=_spelt("xor"), kinds=Bits, commutative=True)
bitwise_not = unary("bitwise_not", numpy=np.invert, aten="bitwise_not.default", kinds=Bits)


def _test(name: str, numpy, aten: str):
    def rule(x: Arithmetic) -> TensorType:
        return x.with_(dtype=bool_)

    rule.__name__, rule.__doc__ = name, f"Whether each element {name.replace('is', 'is ')}."
    return op(aten=aten, numpy=numpy)(rule)


isnan = _test("isnan", np.isnan, "isnan.default")
isinf = _test("isinf", np.isinf, "isinf.default")
isfinite = _test("isfinite", np.isfinite, "isfinite.default")


@op(aten="signbit.default", numpy=lambda x: np.signbit(x) if x.dtype.kind == "f" else x < 0)
def signbit(x: Ordered):
    "Whether each element's sign bit is set."
    return x.with_(dtype=bool_)


@op(aten=("where.ScalarOther", "where.ScalarSelf", "where.Scalar", "where.self"), numpy=np.where)
def where(condition: Boolean, a: Tensor, b: Tensor):
    "a where the condition holds, else b."
    result = elementwise_type(a, b)
    return elementwise_type(condition, a, b, dtype=result.dtype)


@op(aten="_to_copy.default", numpy=lambda x, *, dtype: _cast(x, dtype))
def cast(x: Tensor, *, dtype: DType):
    "x as another dtype; float to integer truncates toward zero."
    return x.with_(dtype=dtype)


def _cast(x: np.ndarray, dtype: DType) -> np.ndarray:
    real = x.real if x.dtype.kind == "c" and dtype.kind != "c" else x
    return real.astype(dtype.numpy)


@op(aten="detach.default", numpy=lambda x: x, view=True)
def detach(x: Tensor):
    "x, with no gradient flowing back."
    return x
