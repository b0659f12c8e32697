"""One result element from the elements at the same place, with broadcasting."""

import math

import numpy as np

from ..core import elementwise as elementwise_type
from ..declare import Bits, Boolean, Float, Numeric, Real, Tensor, binary, op, unary
from ..types import DType, bool_

neg = unary("neg", numpy=np.negative, aten="neg.default", kinds=Numeric)
abs = unary("abs", numpy=np.abs, aten="abs.default", kinds=Numeric)
exp = unary("exp", numpy=np.exp, aten="exp.default", triton="tl.exp({x})")
log = unary("log", numpy=np.log, aten="log.default", triton="tl.log({x})")
sqrt = unary("sqrt", numpy=np.sqrt, aten="sqrt.default", triton="tl.sqrt({x})")
rsqrt = unary("rsqrt", numpy=lambda x: 1 / np.sqrt(x), aten="rsqrt.default", triton="tl.rsqrt({x})")
sin = unary("sin", numpy=np.sin, aten="sin.default", triton="tl.sin({x})")
cos = unary("cos", numpy=np.cos, aten="cos.default", triton="tl.cos({x})")
tanh = unary("tanh", numpy=np.tanh, aten="tanh.default")
reciprocal = unary("reciprocal", numpy=lambda x: 1 / x, aten="reciprocal.default")


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


sigmoid = unary("sigmoid", numpy=_sigmoid, aten="sigmoid.default", triton="tl.sigmoid({x})")
erf = unary("erf", numpy=np.vectorize(math.erf, otypes=[float]), aten="erf.default", triton="tl.erf({x})")
relu = unary("relu", numpy=lambda x: np.where(x < 0, 0, x), aten="relu.default", kinds=Numeric)
logical_not = unary("logical_not", numpy=np.logical_not, aten="logical_not.default", kinds=Boolean)

add = binary("add", numpy=np.add, aten="add.Tensor", commutative=True)
mul = binary("mul", numpy=np.multiply, aten="mul.Tensor", commutative=True)
sub = binary("sub", numpy=np.subtract, aten="sub.Tensor", kinds=Numeric)
maximum = binary("maximum", numpy=np.maximum, aten="maximum.default", commutative=True)
minimum = binary("minimum", numpy=np.minimum, aten="minimum.default", commutative=True)

eq = binary("eq", numpy=np.equal, aten=("eq.Scalar", "eq.Tensor"), result=bool_, commutative=True)
ne = binary("ne", numpy=np.not_equal, aten=("ne.Scalar", "ne.Tensor"), result=bool_, commutative=True)
lt = binary("lt", numpy=np.less, aten=("lt.Scalar", "lt.Tensor"), result=bool_)
le = binary("le", numpy=np.less_equal, aten=("le.Scalar", "le.Tensor"), result=bool_)
gt = binary("gt", numpy=np.greater, aten=("gt.Scalar", "gt.Tensor"), result=bool_)
ge = binary("ge", numpy=np.greater_equal, aten=("ge.Scalar", "ge.Tensor"), result=bool_)


@op(aten="div.Tensor", numpy=np.true_divide)
def div(a: Tensor, b: Tensor):
    "a / b; integers divide to the default float."
    result = elementwise_type(a, b)
    from ..types import f32

    return result if result.dtype.kind in "fc" else result.with_(dtype=f32)


@op(aten=("pow.Tensor_Scalar", "pow.Scalar", "pow.Tensor_Tensor"), numpy=np.power)
def pow(a: Tensor, b: Tensor):
    "a to the power b."
    return elementwise_type(a, b)


@op(aten=("logical_and.default", "bitwise_and.Tensor"), numpy=np.logical_and, commutative=True)
def logical_and(a: Boolean, b: Boolean):
    "Both true."
    return elementwise_type(a, b, dtype=bool_)


@op(aten="where.self", numpy=np.where)
def where(condition: Boolean, a: Tensor, b: Tensor):
    "a where the condition holds, else b."
    result = elementwise_type(a, b)
    return elementwise_type(condition, a, b, dtype=result.dtype)


@op(aten="_to_copy.default", numpy=lambda x, *, dtype: _cast(x, dtype))
def cast(x: Tensor, *, dtype: DType):
    "x as another dtype; float to integer truncates toward zero."
    return x.with_(dtype=dtype)


def _cast(x: np.ndarray, dtype: DType) -> np.ndarray:
    return x.astype(dtype.numpy)
