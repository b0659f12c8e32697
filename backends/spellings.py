"""Lowerings that no single schema says: arguments that have to be put together first."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..ir.core import Op
from ..ir.types import bool_
from . import linear_attention as _registers  # noqa: F401  (torch.ops.subquad.linear_attention)
from . import scan as _also_registers  # noqa: F401  (torch.ops.subquad.linear_scan)
from .base import TORCH_DTYPE
from .lowering import CUSTOM, Lowering, Number

aten = torch.ops.aten


def spelling(name: str) -> Any:
    """Register the decorated function as the lowering of op `name`."""

    def register(function: Any) -> Any:
        CUSTOM[name] = function
        return function

    return register


@spelling("expand")
def expand(to: Lowering, op: Op, operands: list[Any]) -> fx.Node | None:
    """A constant expanded is a tensor filled with it."""
    (x,) = operands
    if not isinstance(x, Number):
        return None
    size = to.attribute(op.attrs["size"])
    dtype = TORCH_DTYPE[op.types[0].dtype]
    return to.call(aten.full.default, size, x.value, dtype=dtype, device=to.device())


@spelling("any")
@spelling("all")
def truth(to: Lowering, op: Op, operands: list[Any]) -> fx.Node:
    """Every axis by number: torch takes an empty list of axes for none."""
    overload = aten.any.dims if op.name == "any" else aten.all.dims
    (x,) = op.operands
    axes = op.attrs["dim"] or tuple(range(x.rank))
    return to.call(overload, to.tensor(operands[0]), list(axes) or None, op.attrs["keepdim"])


@spelling("attention")
def attention(to: Lowering, op: Op, operands: list[Any]) -> fx.Node | None:
    """scaled_dot_product_attention, where it means the same; else the body is lowered."""
    q, k, v, mask, sink = (*op.inputs, None, None)[:5]
    attrs = op.attrs
    if q is None or k is None or v is None or sink is not None or attrs["softcap"] is not None:
        return None
    if attrs["offset"] != 0 or attrs["window"] is not None:
        return None
    if not q.dtype is k.dtype is v.dtype:
        return None  # torch wants one dtype
    if mask is not None:
        if mask.dtype not in (bool_, q.dtype) or attrs["causal"]:
            return None
        if attrs["empty"] != "zero":
            return None  # torch gives 0 in rows whose keys are all masked
    given = None if mask is None else to.tensor(operands[3])
    for _ in range(0 if mask is None else 2 - mask.rank):  # torch wants [n, m]
        given = to.call(aten.unsqueeze.default, given, 0)
    return to.call(
        aten.scaled_dot_product_attention.default, *(to.tensor(x) for x in operands[:3]), given, 0.0,
        attrs["causal"], scale=attrs["scale"], enable_gqa=k.shape[1] != q.shape[1],
    )  # fmt: skip


@spelling("linear_attention")
def linear_attention(to: Lowering, op: Op, operands: list[Any]) -> fx.Node:
    """The chunked custom op of this package."""
    attrs, given = dict(op.attrs), [None if x is None else to.tensor(x) for x in operands]
    ops = torch.ops.subquad
    overload = ops.linear_attention_final if attrs.pop("final") else ops.linear_attention
    names = ("decay", "beta", "state", "segments")
    attrs.update((name, x) for name, x in zip(names, given[3:]) if x is not None)
    return to.call(overload.default, *given[:3], **attrs)


@spelling("index_put")
def index_put(to: Lowering, op: Op, operands: list[Any]) -> fx.Node:
    """torch takes the indices before the values."""
    x, values, *indices = (None if item is None else to.tensor(item) for item in operands)
    return to.call(aten.index_put.default, x, indices, values, op.attrs["accumulate"])


@spelling("batch_norm")
def batch_norm(to: Lowering, op: Op, operands: list[Any]) -> fx.Node:
    """torch's, told not to train."""
    x, w, b, mean, var = (None if item is None else to.tensor(item) for item in operands)
    return to.call(aten.batch_norm.default, x, w, b, mean, var, False, 0.0, op.attrs["eps"], True)
