"""The pass: every attention that was recognised takes its place in the graph."""

from __future__ import annotations

from ...ir import Graph, IRError, No, Op, Value
from ...ir.core import Builder, building, rebuild
from ...ir.rewrite import current_journal
from ..pipeline import pass_
from .normaliser import softmaxes
from .recognise import examine
from .simplify import simplified


@pass_
def attention(graph: Graph) -> Graph:
    """Raise softmax attention to the `attention` op and simplify those there are."""
    record = current_journal()
    chosen: dict[Value, Value] = {}
    with building() as builder:
        for op in graph.ops():  # so that what is tried and dropped never takes an op's place
            builder.intern(op)
        starts = set(softmaxes(graph))
        for op in graph.ops():
            if record.spent:
                break
            builder.source, builder.via = op.source, "attention"
            if op.name == "attention":
                result = simplified(op)
                if result is not None:
                    record.record("simplify_attention", op, result)
                    chosen[op.results[0]] = result
            elif op in starts:
                found = examine(op, graph)
                if isinstance(found, No):
                    record.record("raise_attention", op, found)
                elif found.kept is not None:
                    record.record("raise_attention", op, found.kept)
                elif found.root not in chosen:
                    record.record("raise_attention", op, found.value)
                    chosen[found.root] = found.result
        return _replaced(graph, chosen, builder) if chosen else graph


def _replaced(graph: Graph, chosen: dict[Value, Value], builder: Builder) -> Graph:
    """The graph with values replaced by others that are computed from its own."""
    env: dict[Value, Value] = {}

    def settle(root: Value) -> Value:
        stack = [root]
        while stack:
            value = stack[-1]
            if value in env:
                stack.pop()
                continue
            instead = chosen.get(value)
            needed = [instead] if instead is not None else list(value.op.operands)
            missing = [v for v in needed if v not in env]
            if missing:
                stack += missing
                continue
            stack.pop()
            if instead is not None:
                if instead.type != value.type:
                    raise IRError(f"{value.op.name} : {value.type} cannot become {instead.type}")
                env[value] = env[instead]
                continue
            op = value.op
            builder.source, builder.via = op.source, op.via
            new: Op = rebuild(op, tuple(None if v is None else env[v] for v in op.inputs))
            env.update(zip(op.results, builder.intern(new).results, strict=True))
        return env[root]

    return graph.with_([settle(v) for v in graph.outputs], {k: settle(v) for k, v in graph.updates.items()})
