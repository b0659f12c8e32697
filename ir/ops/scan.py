"""The elementwise gated recurrence, a state of one number for each channel."""

from __future__ import annotations

import numpy as np

from ..core import Value
from ..declare import Real, composite
from ..dims import Dim
from ..errors import IRError
from ..types import TensorType, i64
from . import elementwise as e
from . import index, shape
from . import reduce as r
from .activation import as_dtype, wide


def _flops(
    x: TensorType, decay: TensorType, initial: TensorType | None = None, *, log: bool, reverse: bool
) -> Dim:
    return (2 + int(log)) * x.size


def _recurrent(
    x: np.ndarray, decay: np.ndarray, initial: np.ndarray | None = None, *, log: bool, reverse: bool
) -> np.ndarray:
    decay = np.exp(decay) if log else decay
    state = np.zeros_like(x[..., 0, :]) if initial is None else initial
    out = np.empty_like(x)
    for t in range(x.shape[-2])[:: -1 if reverse else 1]:
        state = out[..., t, :] = decay[..., t, :] * state + x[..., t, :]
    return out


@composite(aten="subquad.linear_scan.default", numpy=_recurrent, flops=_flops)
def linear_scan(
    x: Real, decay: Real, initial: Real | None = None, *, log: bool = False, reverse: bool = False
):
    """h_t = f_t h_(t-1) + x_t along the last axis but one of x [..., n, d], elementwise; h in x's dtype.

    decay: f [..., n, d], or its logarithm where log=True. initial: h_0 [..., d], zero by default.
    reverse: h_t = f_t h_(t+1) + x_t, from the end. HGRN (arXiv:2311.04823), MLGRU (arXiv:2406.02528).
    The body is the parallel form; backends and the oracle run the recurrence, linear in tokens.
    """
    if x.rank < 2 or decay.shape != x.shape:
        raise IRError(f"x is {x.type} and decay {decay.type}: both are [..., n, d]")
    if initial is not None and initial.shape != (*x.shape[:-2], x.shape[-1]):
        raise IRError(f"initial is {initial.type}, which is no state of x, {x.type}")
    y, f, axis, n = wide(x), wide(decay), x.rank - 2, x.shape[-2]
    f = e.exp(f) if log else f
    if reverse:
        y, f = shape.flip(y, dims=(axis,)), shape.flip(f, dims=(axis,))
    place = index.arange(start=0, end=n, dtype=i64)
    source, target = (shape.reshape(place, shape=s) for s in ((n, 1, 1), (1, n, 1)))
    between = e.where(e.lt(source, target), _stacked(f, axis), 1.0)  # [..., source, target, d]
    share = r.cumprod(between, dim=axis + 1) * shape.reshape(y, shape=(*x.shape[:-2], n, 1, x.shape[-1]))
    out = r.sum_(e.where(e.le(source, target), share, 0.0), dim=(axis,))
    if initial is not None:
        start = shape.reshape(wide(initial), shape=(*x.shape[:-2], 1, x.shape[-1]))
        out = out + r.cumprod(f, dim=axis) * start
    out = shape.flip(out, dims=(axis,)) if reverse else out
    return as_dtype(out, x.dtype)


def _stacked(f: Value, axis: int) -> Value:
    """[..., n, d] as [..., 1, n, d]."""
    return shape.reshape(f, shape=(*f.shape[:axis], 1, *f.shape[axis:]))
