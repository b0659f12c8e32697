"""Matrix products and what is built on them."""

import numpy as np

from ..declare import Numeric, op
from ..errors import IRError
from ..types import TensorType, broadcast, product


def one_dtype(*types: TensorType | None) -> None:
    """Raise IRError unless the operands have one dtype: products do not promote."""
    dtypes = list(dict.fromkeys(t.dtype for t in types if t is not None))
    if len(dtypes) > 1:
        raise IRError(f"operands are {' and '.join(map(str, dtypes))}; cast one of them")


@op(aten=("matmul.default", "mm.default", "bmm.default"), numpy=np.matmul,
    flops=lambda a, b: 2 * _rows(a, b) * a.shape[-1] * b.shape[-1])  # fmt: skip
def matmul(a: Numeric, b: Numeric):
    "Batched matrix product over the last two axes; both operands have at least two."
    one_dtype(a, b)
    if a.rank < 2 or b.rank < 2:
        raise IRError(f"both operands need two axes, given {a.rank} and {b.rank}")
    if a.shape[-1] != b.shape[-2]:
        raise IRError(f"inner dims differ: {a.shape[-1]} and {b.shape[-2]}")
    return a.with_(shape=(*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))


def _rows(a, b):
    return product(broadcast(a.shape[:-2], b.shape[:-2])) * a.shape[-2]


def _linear(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    y = x @ w.T
    return y if b is None else y + b


@op(aten="linear.default", numpy=_linear, flops=lambda x, w, b=None: 2 * x.size * w.shape[0])
def linear(x: Numeric, w: Numeric, b: Numeric | None = None):
    "x @ w^T + b, with w [out, in]."
    one_dtype(x, w, b)
    if x.shape[-1:] != w.shape[1:] or w.rank != 2:
        raise IRError(f"x is {x}, which w, {w}, does not take")
    if b is not None and b.shape != w.shape[:1]:
        raise IRError(f"bias has shape {b.shape}, w gives {w.shape[0]} features")
    return x.with_(shape=(*x.shape[:-1], w.shape[0]))
