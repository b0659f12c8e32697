"""Reading and writing by position, and making index tensors."""

import numpy as np

from ..attributes import Number, Size
from ..declare import Integer, Tensor, op
from ..errors import IRError
from ..types import DType, TensorType


@op(aten="embedding.default", numpy=lambda w, ids: w[ids], flops=lambda w, ids: 0)
def embedding(w: Tensor, ids: Integer):
    "Rows of w [count, d] at ids."
    if w.rank != 2:
        raise IRError(f"the table has {w.rank} axes, not 2")
    return w.with_(shape=(*ids.shape, w.shape[1]))
