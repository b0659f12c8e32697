"""Lowerings that no single schema says: arguments that have to be put together first."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..ir.core import Op
from ..ir.types import bool_
from . import linear_attention as _registers  # noqa: F401  (torch.ops.subquad.linear_attention)
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
    q, k, v = (to.tensor(x) for x in operands[:3])
    mask = to.tensor(operands[3]) if len(operands) > 3 else None
    types = [x.type for x in op.operands]
    causal, (_, h, n, _), m = op.attrs["causal"], types[0].shape, types[1].shape[2]
    if len({t.dtype for t in types[:3]}) > 1 or (types[3:] and types[3].dtype not in (bool_, types[0].dtype)):
        return None  # torch wants one dtype
    if mask is not None and not op.attrs["safe"]:
        return None  # torch gives 0 in rows whose keys are all masked
    if mask is not None and causal:  # torch takes one or the other
        size = [to.dim(n), to.dim(m)]
        seen = to.call(aten.ones.default, size, dtype=torch.bool, device=to.device())
        seen = to.call(aten.tril.default, seen)
        if types[3].dtype is bool_:
            mask = to.call(aten.logical_and.default, mask, seen)
        else:
            mask = to.call(aten.where.ScalarOther, seen, mask, float("-inf"))
        causal = False
    return to.call(
        aten.scaled_dot_product_attention.default, q, k, v, mask, 0.0, causal,
        scale=op.attrs["scale"], enable_gqa=types[1].shape[1] != h,
    )  # fmt: skip


@spelling("linear_attention")
def linear_attention(to: Lowering, op: Op, operands: list[Any]) -> fx.Node:
    """The chunked custom op of this package."""
    return to.call(torch.ops.subquad.linear_attention.default, *map(to.tensor, operands), **op.attrs)


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
