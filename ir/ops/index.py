"""Reading and writing by position, and making index tensors."""

import math

import numpy as np

from ..attributes import Anything
from ..declare import Integer, Tensor, op
from ..dims import Dim, Poly, floordiv
from ..errors import IRError
from ..types import DType, TensorType


@op(aten="embedding.default", numpy=lambda w, ids: w[ids], flops=lambda w, ids: 0)
def embedding(w: Tensor, ids: Integer):
    "Rows of w [count, d] at ids."
    if w.rank != 2:
        raise IRError(f"the table has {w.rank} axes, not 2")
    return w.with_(shape=(*ids.shape, w.shape[1]))


@op(aten="arange.start_step",
    numpy=lambda *, start, end, step, dtype: start + np.arange(count(start, end, step)) * step)
def arange(*, start: Anything = 0, end: Anything, step: Anything = 1, dtype: DType):
    "start, start + step, ... as long as end is not reached; numbers or dims."
    return TensorType(dtype, (count(start, end, step),))


def count(start: Dim | float, end: Dim | float, step: Dim | float) -> Dim:
    """How many numbers lie from start to end by step. Raises IRError for bounds that contradict."""
    if step == 0 or isinstance(step, Poly):
        raise IRError(f"cannot count by a step of {step}")
    if isinstance(start, Poly) or isinstance(end, Poly):
        if not isinstance(step, int) or isinstance(start, float) or isinstance(end, float):
            raise IRError(f"cannot count from {start} to {end} by {step}")
        return floordiv(end - start + step - 1, step) if step > 0 else floordiv(start - end - step - 1, -step)
    if not all(map(math.isfinite, (start, end, step))) or (end - start) * step < 0:
        raise IRError(f"cannot count from {start} to {end} by {step}")
    if all(isinstance(x, int) for x in (start, end, step)):
        return -((start - end) // step)
    return math.ceil((end - start) / step)
