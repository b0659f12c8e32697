"""Where values come from: graph inputs, weights, constants, and ops outside the vocabulary."""

from typing import Annotated, Any

import numpy as np

from ..attributes import Anything, Number, Size
from ..declare import op
from ..errors import IRError
from ..types import DType, TensorType


def _type_of(*_: TensorType, type: Any, **__: Any) -> TensorType:
    if not isinstance(type, TensorType):
        raise IRError(f"type={type!r} is no tensor type")
    return type


@op()
def input(*, name: str, type: Anything):
    "An input of the graph."
    return _type_of(type=type)


@op()
def param(*, name: str, type: Anything, init: Anything = None, fixed: bool = False):
    """A weight, buffer or lifted constant, by name; the frontend owns the tensor.

    init: for a weight that a pass adds, the graph that computes what it starts from: no inputs, one
    output of this type; it may read other params. fixed: it is a buffer, and is not trained.
    """
    made = _type_of(type=type)
    if init is not None and (init.inputs or [v.type for v in init.outputs] != [made]):
        raise IRError(f"init of {name!r} takes nothing and gives {made}")
    return made


@op(numpy=lambda *, value, dtype: np.asarray(value))
def const(*, value: Number, dtype: DType):
    "A 0-d constant. The number keeps full precision; `dtype` is what it counts as in promotion."
    fits = {"b": bool, "u": int, "i": int}.get(dtype.kind, float | int)
    if not isinstance(value, fits):
        raise IRError(f"{value!r} is no {dtype}")
    return TensorType(dtype, ())


@op()
def opaque(*xs: Annotated[Any, "operand:buifcx"], target: str, args: Anything, kwargs: Anything = (),
           types: Anything, key: int = 0):  # fmt: skip
    """An op outside the vocabulary, run by backends that can call torch; passes leave it alone.

    args, kwargs: the call's structure, operands as `$i`. types: the result types. key: tells apart
    calls that must not merge (random or effectful); 0 for pure ones.
    """
    return types


@op(numpy=lambda *, value, dtype: np.asarray(value))
def size(*, value: Size, dtype: DType):
    "A dimension as a 0-d number, `x.sum() / x.shape[0]`; `dtype` as for `const`."
    return TensorType(dtype, ())
