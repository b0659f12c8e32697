"""What a graph costs: FLOPs and bytes moved, symbolic in its dims.

A multiply-add counts two. Transcendentals, comparisons and casts count one an element; moving data
counts none. Bytes are what an unfused execution reads and writes: inputs plus outputs of every op, and
what an op says that it carries from step to step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .core import Op
from .dims import Dim
from .graph import Graph
from .interpret import body_graph
from .types import TensorType

FREE = frozenset({"input", "param", "const", "opaque", "size"})


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs and bytes; `Dim`s, so they may be polynomials in the symbolic dims."""

    flops: Dim = 0
    bytes: Dim = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def cost(item: Op | Graph) -> Cost:
    """The cost of one op or of a whole graph.

    An `opaque` op counts its bytes and no FLOPs: what it computes is unknown.
    """
    if isinstance(item, Op):
        return Cost(_flops(item), _bytes(item))
    total = Cost()
    for op in item.ops():
        total = total + cost(op)
    return total


@functools.lru_cache(maxsize=1024)  # body graphs are themselves cached, so this pins nothing new
def _body_flops(body: Graph) -> Dim:
    return cost(body).flops


def _flops(op: Op) -> Dim:
    defn = op.defn
    if defn.flops is not None:
        types: list[TensorType | None] = [None if v is None else v.type for v in op.inputs]
        return defn.flops(*types, **op.attrs)
    if defn.body is not None:
        return _body_flops(body_graph(op))
    if defn.view or op.name in FREE:
        return 0
    total: Dim = 0
    for type in op.types:
        total = total + type.size
    return total


def _bytes(op: Op) -> Dim:
    if op.defn.view or op.name in ("input", "param", "const"):
        return 0
    if op.defn.bytes is not None:
        types: list[TensorType | None] = [None if v is None else v.type for v in op.inputs]
        return op.defn.bytes(*types, **op.attrs)
    total: Dim = 0
    for value in (*op.operands, *op.results):
        if value.op.name != "const":
            total = total + value.type.bytes
    return total
