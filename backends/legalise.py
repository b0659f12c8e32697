"""Ops in the form the torch backends have one call for, as a graph like any other."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.core import Op, Value
from ..ir.dims import Dim
from ..ir.graph import Graph
from ..ir.ops.activation import as_dtype
from ..ir.ops.attention import attention, band
from ..ir.ops.elementwise import logical_and, where
from ..ir.ops.reduce import any_, mean
from ..ir.ops.shape import expand, reshape
from ..ir.rewrite import replace
from ..ir.types import bool_


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
    if keep is not None and keep.dtype is bool_ and uniform:
        out = attention(q, k, v, keep, sink, empty="zero", **rest)
        seen = any_(keep, dim=(keep.rank - 1,), keepdim=True) if keep.rank else keep
        return where(seen, out, as_dtype(_mean(v, q.shape[1]), q.dtype))
    if keep is mask:
        return None
    return attention(q, k, v, keep, sink, empty=empty, **rest)


def _mean(v: Value, h: Dim) -> Value:
    """The mean of v [b,g,m,e] over its keys for each of h heads, [b,h,1,e].

    A finite mask in place of it, as low as a dtype goes, would have the wrong gradient: beside it the
    logarithm of how many keys there are, which the backward pass of torch's kernels takes off, is lost.
    """
    (b, g, _, e), each = v.shape, h // v.shape[1]
    few = mean(v, dim=(2,), keepdim=True)
    return few if h == g else reshape(expand(few, size=(b, g, each, e)), shape=(b, h, 1, e))
