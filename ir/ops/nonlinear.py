"""Elementwise functions built from others: activations and what stands beside them."""

import math

from ..attributes import Axis, Number
from ..core import Value
from ..declare import Arithmetic, Float, Real, RealNumeric, composite
from ..dims import floordiv
from ..errors import IRError
from . import elementwise as e
from . import shape

LARGEST = {"f16": 65504.0, "bf16": (2 - 2**-7) * 2.0**127, "f32": (2 - 2**-23) * 2.0**127,
           "f64": (2 - 2**-52) * 2.0**1023}  # fmt: skip
"""The largest finite number of each float dtype."""


@composite(aten=("clamp.default", "clamp_min.default", "clamp_max.default"))
def clamp(x: RealNumeric, *, min: Number | None = None, max: Number | None = None):
    "x kept between min and max; max wins where they cross, NaN stays."
    if min is None and max is None:
        raise IRError("neither min nor max is given")
    y = x if min is None else e.maximum(x, min)
    return y if max is None else e.minimum(y, max)


@composite(aten="hardtanh.default")
def hardtanh(x: Real, *, min_val: Number = -1, max_val: Number = 1):
    "x kept between min_val and max_val."
    return clamp(x, min=min_val, max=max_val)


@composite(aten="relu6.default")
def relu6(x: Real):
    "x kept between 0 and 6."
    return clamp(x, min=0, max=6)


@composite(aten="hardsigmoid.default")
def hardsigmoid(x: Real):
    "(x + 3) / 6, kept between 0 and 1."
    return clamp(x + 3, min=0, max=6) / 6


@composite(aten="hardswish.default")
def hardswish(x: Real):
    "x * hardsigmoid(x) (arXiv:1905.02244)."
    return x * clamp(x + 3, min=0, max=6) / 6


@composite(aten="leaky_relu.default")
def leaky_relu(x: Real, *, negative_slope: Number = 0.01):
    "x, or negative_slope * x where x <= 0."
    return e.where(e.gt(x, 0), x, x * negative_slope)


@composite(aten="elu.default")
def elu(x: Real, *, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1):
    "scale * x, or scale * alpha * (exp(input_scale * x) - 1) where x <= 0 (arXiv:1511.07289)."
    return e.where(e.gt(x, 0), x * scale, e.expm1(x * input_scale) * (alpha * scale))


@composite(aten="celu.default")
def celu(x: Real, *, alpha: Number = 1.0):
    "x, or alpha * (exp(x / alpha) - 1) where x <= 0 (arXiv:1704.07483)."
    return e.where(e.gt(x, 0), x, e.expm1(x * (1.0 / alpha)) * alpha)


@composite(aten="selu.default")
def selu(x: Real):
    "elu with the self-normalising constants (arXiv:1706.02515)."
    return elu(x, alpha=1.6732632423543772848170429916717, scale=1.0507009873554804934193349852946)


@composite(aten="softplus.default")
def softplus(x: Real, *, beta: Number = 1, threshold: Number = 20):
    "log(1 + exp(beta * x)) / beta, and x itself where beta * x > threshold."
    scaled = x * beta
    return e.where(e.gt(scaled, threshold), x, e.log1p(e.exp(scaled)) / beta)


@composite(aten="mish.default")
def mish(x: Real):
    "x * tanh(log(1 + exp(x))) (arXiv:1908.08681)."
    return x * e.tanh(softplus(x))


@composite(aten="log_sigmoid.default")
def log_sigmoid(x: Real):
    "log(sigmoid(x)), computed without overflow."
    return e.minimum(x, 0) - e.log1p(e.exp(-e.abs_(x)))


@composite(aten="hardshrink.default")
def hardshrink(x: Real, *, lambd: Number = 0.5):
    "x, or 0 where |x| <= lambd; NaN stays."
    inside = e.logical_and(e.ge(x, -lambd), e.le(x, lambd))
    return e.where(inside, 0, x)


@composite(aten="softshrink.default")
def softshrink(x: Real, *, lambd: Number = 0.5):
    "x moved towards 0 by lambd, not past it; NaN stays."
    if lambd < 0:
        raise IRError(f"lambd={lambd} is negative")
    return e.where(e.gt(x, lambd), x - lambd, e.where(e.lt(x, -lambd), x + lambd, x * 0))


@composite(aten="threshold.default")
def threshold(x: RealNumeric, *, threshold: Number, value: Number):
    "x, or value where x <= threshold."
    return e.where(e.le(x, threshold), constant(value, x), x)


@composite(aten="prelu.default")
def prelu(x: Real, weight: Real):
    "x, or weight * x where x <= 0; one weight for all, or one for each channel (axis 1)."
    if weight.rank > 1 or weight.dtype is not x.dtype:
        raise IRError(f"weight {weight.type} is not one {x.dtype}, nor one for each channel")
    many = weight.rank == 1 and weight.shape[0] != 1
    if many and (x.rank < 2 or x.shape[1] != weight.shape[0]):
        raise IRError(f"{weight.shape[0]} weights, x is {x.type}")
    lead = (1, -1) if many else (1,) * min(x.rank, 2)
    weight = shape.reshape(weight, shape=(*lead, *(1,) * (x.rank - 2)))
    return e.where(e.gt(x, 0), x, x * weight)


@composite(aten="glu.default")
def glu(x: Real, *, dim: Axis = -1):
    "The first half of x along dim times the sigmoid of the second (arXiv:1612.08083)."
    half = floordiv(x.shape[dim], 2) if x.rank else 0
    if x.rank == 0 or half * 2 != x.shape[dim]:
        raise IRError(f"{x.type} has no two halves along axis {dim}")
    first = shape.slice_(x, dim=dim, start=0, end=half)
    return first * e.sigmoid(shape.slice_(x, dim=dim, start=half, end=half * 2))


@composite(aten="logit.default")
def logit(x: Real, *, eps: float | None = None):
    "log(x / (1 - x)), with x first kept between eps and 1 - eps, where there is a between."
    if eps is not None and not eps <= 0.5:
        raise IRError(f"eps={eps}: nothing lies between it and {1 - eps}")
    y = x if eps is None else clamp(x, min=eps, max=1 - eps)
    return e.log(y / (1 - y))


@composite(aten="nan_to_num.default")
def nan_to_num(x: RealNumeric, *, nan: float | None = None, posinf: float | None = None,
               neginf: float | None = None):  # fmt: skip
    "x with NaN and infinities replaced: by 0 and the largest numbers, unless told otherwise."
    if not x.dtype.is_float:
        return x
    most = LARGEST[x.dtype.name]
    y = e.where(e.isnan(x), 0.0 if nan is None else nan, x)
    y = e.where(e.eq(x, math.inf), most if posinf is None else posinf, y)
    return e.where(e.eq(x, -math.inf), -most if neginf is None else neginf, y)


@composite(aten=("lerp.Scalar", "lerp.Tensor"))
def lerp(a: Real, b: Real, weight: Real):
    "a + weight * (b - a)."
    same_dtype(a, b, weight)
    return a + weight * (b - a)


@composite(aten="addcmul.default")
def addcmul(x: Arithmetic, a: Arithmetic, b: Arithmetic, *, value: Number = 1):
    "x + value * a * b."
    return x + a * b * value


@composite(aten="addcdiv.default")
def addcdiv(x: Float, a: Float, b: Float, *, value: Number = 1):
    "x + value * a / b."
    return x + a / b * value


@composite(aten=("xlogy.Tensor", "xlogy.Scalar_Other", "xlogy.Scalar_Self"))
def xlogy(a: Real, b: Real):
    "a * log(b), 0 where a is 0; NaN where b is."
    product = e.where(e.eq(a, 0), 0, a * e.log(b))
    return e.where(e.isnan(b), b, product)


@composite(aten="logaddexp.default")
def logaddexp(a: Real, b: Real):
    "log(exp(a) + exp(b)), computed without overflow."
    high = e.maximum(a, b)
    gap = e.where(e.eq(a, b), 0, -e.abs_(a - b))  # equal infinities have no difference
    return high + e.log1p(e.exp(gap))


def constant(value: bool | int | float, like: Value) -> Value:
    """A number as a 0-d constant of the dtype of `like`."""
    from .graph import const

    return const(value=value, dtype=like.dtype)


def same_dtype(*values: Value) -> None:
    """Raise IRError unless all values have one dtype."""
    if len({v.dtype for v in values}) > 1:
        raise IRError(f"dtypes differ: {', '.join(str(v.dtype) for v in values)}")
