"""Random ops. `key` tells two calls apart; they are never merged, folded, or evaluated in numpy."""

from ..attributes import Shape, Size
from ..declare import Float, Real, op
from ..errors import IRError
from ..types import DType, TensorType


@op(aten="dropout.default", random=True)
def dropout(x: Float, *, p: float, train: bool = True, key: int):
    "x with elements zeroed with probability p, and the others divided by 1 - p."
    if not 0 <= p <= 1:
        raise IRError(f"p={p} is no probability")
    return x


@op(aten="rand.default", random=True)
def rand(*, size: Shape, dtype: DType, key: int):
    "Uniform on [0, 1)."
    return TensorType(dtype, size)


@op(aten="randn.default", random=True)
def randn(*, size: Shape, dtype: DType, key: int):
    "Standard normal."
    return TensorType(dtype, size)


@op(aten="randint.low", random=True)
def randint(*, low: Size, high: Size, size: Shape, dtype: DType, key: int):
    "Whole numbers, uniform on [low, high)."
    return TensorType(dtype, size)


@op(aten=("bernoulli.default",), random=True)
def bernoulli(x: Real, *, key: int):
    "1 with probability x, else 0."
    return x


@op(aten="bernoulli.p", random=True)
def bernoulli_p(x: Real, *, p: float = 0.5, key: int):
    "1 with probability p, else 0, in the shape of x."
    if not 0 <= p <= 1:
        raise IRError(f"p={p} is no probability")
    return x
