"""Ops in the form the torch backends have one call for, as a graph like any other."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.core import Op, Value
from ..ir.graph import Graph
from ..ir.ops.attention import attention, band
from ..ir.ops.elementwise import logical_and, where
from ..ir.ops.graph import const
from ..ir.rewrite import replace
from ..ir.types import bf16, bool_, f32, f64

LOWEST = {f64: -1.7976931348623157e308, f32: -3.4028234663852886e38, bf16: -3.3895313892515355e38}
"""The least finite number; a score added to it is lost in rounding, so a row of them is uniform."""


def legalise(graph: Graph) -> Graph:
    """`graph` with what attention masks by position written out as a mask, where torch needs it so.

    Layers that mask alike share one mask: equal ops are one op.
    """

    def make(op: Op, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if op.name != "attention":
            return None
        result = _one_mask(*inputs, **op.attrs)
        return None if result is None else (result,)

    return replace(graph, make, via="legalise")


def _one_mask(q, k, v, mask=None, sink=None, *, causal, offset, window, empty, **rest):
    """The attention with one mask operand; None where it needs none, or has it."""
    n, m = q.shape[2], k.shape[2]
    uniform = empty == "uniform" and sink is None
    if causal and mask is None and offset == 0 and window is None and not uniform:
        return None  # is_causal
    keep = band(n, m, causal=causal, offset=offset, window=window)
    if mask is not None and keep is not None:
        keep = logical_and(mask, keep) if mask.dtype is bool_ else where(keep, mask, float("-inf"))
    keep = mask if keep is None else keep
    if keep is not None and keep.dtype is bool_ and uniform and q.dtype in LOWEST:
        keep = where(keep, const(value=0.0, dtype=q.dtype), const(value=LOWEST[q.dtype], dtype=q.dtype))
        empty = "zero"  # no key is masked by -inf
    if keep is mask:
        return None
    return attention(q, k, v, keep, sink, empty=empty, **rest)
