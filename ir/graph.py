"""The graph: what a model computes, as the ops that its outputs reach."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from .core import Op, Value
from .dims import symbols
from .errors import BackendError, IRError
from .types import TensorType

if TYPE_CHECKING:
    import networkx

NAME = re.compile(r"[A-Za-z0-9_.]+")
"""What a graph or an input may be called; a graph's name starts with a letter or `_`."""


class Graph:
    """Inputs, outputs, and every op the outputs reach. Immutable.

    updates: new contents for a buffer (its param name) or an input (its name) after the call.
    facts: `(symbol, low, high | None)` ranges that capture promised; a symbol without one is >= 0.
    """

    exporters: ClassVar[dict[str, Callable[..., str]]] = {}
    """Other languages a graph can be written in, by name; the rooms that speak them fill it."""

    def __init__(
        self,
        name: str,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        updates: Mapping[str, Value] | None = None,
        facts: Iterable[tuple[str, int, int | None]] = (),
    ):
        self.name, self.inputs, self.outputs = name, tuple(inputs), tuple(outputs)
        self.updates: Mapping[str, Value] = MappingProxyType(dict(updates or {}))
        self.facts = tuple(sorted(facts))
        self._check()

    def _check(self) -> None:
        """Raise IRError unless the text form could say all this."""
        for value in (*self.inputs, *self.outputs, *self.updates.values()):
            if not isinstance(value, Value):
                raise IRError(f"graph {self.name!r}: a {type(value).__name__} is no Value")
        inputs = [v.op.attrs["name"] if v.op.name == "input" else None for v in self.inputs]
        for name in (self.name, *inputs):
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise IRError(f"graph {self.name!r}: {name!r} is no name of a graph or an input")
        if not (self.name[0].isalpha() or self.name[0] == "_"):
            raise IRError(f"the name of graph {self.name!r} must start with a letter")
        if len(set(inputs)) < len(inputs):
            raise IRError(f"graph {self.name!r} has two inputs of one name: {', '.join(map(str, inputs))}")
        declared, params = set(self.inputs), dict[str, TensorType]()
        for op in self.ops():
            name = op.attrs["name"] if op.name in ("input", "param") else ""
            if op.name == "input" and op.results[0] not in declared:
                raise IRError(f"graph {self.name!r} uses input {name!r} but does not declare it")
            if op.name == "param" and params.setdefault(name, op.types[0]) != op.types[0]:
                raise IRError(f"param {name!r} is both {params[name]} and {op.types[0]}")

    @functools.cached_property
    def _ops(self) -> tuple[Op, ...]:
        roots = [root.op for root in (*self.inputs, *self.outputs, *self.updates.values())]
        order = operands_first(roots)
        keyed = [op for op in order if op.attrs.get("key")]
        drawn = sorted(keyed, key=lambda op: op.attrs["key"])
        if keyed != drawn:  # numbers are drawn in the order in which the model draws them
            order = operands_first([*(x.op for x in self.inputs), *drawn, *roots])
        return tuple(order)

    def ops(self) -> tuple[Op, ...]:
        """Every op, operands first: the one order used by printing, running and rewriting."""
        return self._ops

    @property
    def params(self) -> dict[str, TensorType]:
        """Names and types of the weights, buffers and lifted constants the graph reads."""
        return {op.attrs["name"]: op.types[0] for op in self.ops() if op.name == "param"}

    @functools.cached_property
    def _uses(self) -> dict[Value, tuple[Op, ...]]:
        users: dict[Value, list[Op]] = {}
        for op in self.ops():
            for value in op.operands:
                users.setdefault(value, []).append(op)
        return {value: tuple(ops) for value, ops in users.items()}

    def uses(self, value: Value) -> tuple[Op, ...]:
        """The ops that read `value`, one entry an operand slot; outputs and updates not counted."""
        return self._uses.get(value, ())

    @functools.cached_property
    def schedule(self) -> tuple[tuple[Op, tuple[Value, ...]], ...]:
        """`ops()` with, beside each op, the values nobody needs after it."""
        last: dict[Value, Op] = {}
        for op in self.ops():
            last.update((result, op) for result in op.results)
            last.update((value, op) for value in op.operands)
        kept = {*self.outputs, *self.updates.values()}
        dead: dict[Op, list[Value]] = {}
        for value, op in last.items():
            if value not in kept:
                dead.setdefault(op, []).append(value)
        return tuple((op, tuple(dead.get(op, ()))) for op in self.ops())

    def symbols(self) -> tuple[str, ...]:
        """The names of the symbolic dims of the inputs, in order of appearance."""
        return tuple(dict.fromkeys(symbols(d for v in self.inputs for d in v.shape)))

    @functools.cached_property
    def _digest(self) -> str:
        return hashlib.sha256(str(self).encode()).hexdigest()

    def digest(self) -> str:
        """Hex sha256 of the printed text: the same across processes, threads and hash seeds."""
        return self._digest

    def with_(
        self,
        outputs: Sequence[Value] | None = None,
        updates: Mapping[str, Value] | None = None,
    ) -> Graph:
        """This graph with other outputs or updates; itself when they are the same values."""
        outputs = self.outputs if outputs is None else tuple(outputs)
        updates = self.updates if updates is None else updates
        if outputs == self.outputs and dict(updates) == dict(self.updates):
            return self
        return Graph(self.name, self.inputs, outputs, updates, self.facts)

    def __str__(self) -> str:
        from .printer import print_graph

        return print_graph(self)

    def __repr__(self) -> str:
        return f"<graph {self.name}: {len(self.ops())} ops>"

    def to_mlir(self, sizes: Mapping[str, int] | None = None) -> str:
        """The graph as one function of MLIR's torch dialect; see `subquad.backends.mlir.emit`.

        sizes: a number for each symbolic dim, `{"n": 128}`. Needs torch, but not torch-mlir. Raises
        BackendError for an op or dtype that torch-mlir lacks, and for a dim without a size.
        """
        if "mlir" not in self.exporters:
            raise BackendError(
                f"graph {self.name!r} cannot be written as MLIR: what writes it is not loaded; "
                "import subquad.backends first (it needs torch)"
            )
        return self.exporters["mlir"](self, sizes)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """Ops as nodes (attributes name, types, source), values as edges (attributes type, slot).

        For users' own analysis; needs networkx. Node keys are positions in `ops()`.
        """
        import networkx

        graph = networkx.MultiDiGraph(name=self.name)
        index = {op: i for i, op in enumerate(self.ops())}
        for op, i in index.items():
            graph.add_node(i, name=op.name, types=op.types, source=op.source, attrs=dict(op.attrs))
            for slot, value in enumerate(op.inputs):
                if value is not None:
                    graph.add_edge(index[value.op], i, type=value.type, slot=slot)
        return graph


def operands_first(roots: Iterable[Op]) -> list[Op]:
    """`roots` and all they are computed from, operands before the ops that read them."""
    order: list[Op] = []
    seen: set[Op] = set()
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(root.inputs))]
        while stack:
            op, rest = stack[-1]
            for value in rest:
                if value is not None and value.op not in seen:
                    seen.add(value.op)
                    stack.append((value.op, iter(value.op.inputs)))
                    break
            else:
                order.append(op)
                stack.pop()
    return order
