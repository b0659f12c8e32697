"""Matrix products and what is built on them."""

import numpy as np

from ..declare import Numeric, op
from ..errors import IRError
from ..types import broadcast, product, promote


@op(aten="matmul.default", numpy=np.matmul, flops=lambda a, b: 2 * _rows(a, b) * a.shape[-1] * b.shape[-1])
def matmul(a: Numeric, b: Numeric):
    "Batched matrix product over the last two axes; both operands have at least two."
    if a.rank < 2 or b.rank < 2:
        raise IRError(f"both operands need two axes, given {a.rank} and {b.rank}")
    if a.shape[-1] != b.shape[-2]:
        raise IRError(f"inner dims differ: {a.shape[-1]} and {b.shape[-2]}")
    shape = (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    return a.with_(dtype=promote(a, b), shape=shape)


def _rows(a, b):
    return product(broadcast(a.shape[:-2], b.shape[:-2])) * a.shape[-2]


def _linear(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    y = x @ w.T
    return y if b is None else y + b


@op(aten="linear.default", numpy=_linear, flops=lambda x, w, b=None: 2 * x.size * w.shape[0])
def linear(x: Numeric, w: Numeric, b: Numeric | None = None):
    "x @ w^T + b, with w [out, in]."
    if x.shape[-1:] != w.shape[1:] or w.rank != 2:
        raise IRError(f"x has {x.shape[-1]} features, w takes {w.shape[-1]}")
    if b is not None and b.shape != w.shape[:1]:
        raise IRError(f"bias has shape {b.shape}, w gives {w.shape[0]} features")
    return x.with_(shape=(*x.shape[:-1], w.shape[0]))
