"""Making a failing graph small: fewer outputs, shorter prefixes, fewer ops, smaller dims.

`reduce(graph, fails)` tries smaller graphs for as long as one of them still fails. `keep` writes
the result under tests/ir/found, text and seed, where the golden tests' folder keeps it for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from subquad.ir import OPS, Graph, IRError, Op, Value, build, building
from subquad.ir.dims import Dim, Poly
from subquad.ir.types import TensorType

FOUND = Path(__file__).parent / "ir" / "found"


def reduce(graph: Graph, fails: Callable[[Graph], bool], most: int = 2000) -> Graph:
    """The smallest graph found that still fails. `fails` is asked at most `most` times."""
    asked = 0
    improved = True
    while improved and asked < most:
        improved = False
        for smaller in candidates(graph):
            asked += 1
            if asked >= most:
                break
            if weight(smaller) < weight(graph) and _fails(fails, smaller):
                graph, improved = smaller, True
                break
    return graph


def _fails(fails: Callable[[Graph], bool], graph: Graph) -> bool:
    try:
        return fails(graph)
    except IRError:
        return False  # no longer a graph that can run


def weight(graph: Graph) -> tuple[int, ...]:
    """What counts as smaller: ops that compute, then outputs, inputs, and the sizes of the dims."""
    ops = [op for op in graph.ops() if op.name not in ("input", "param", "const")]
    dims = [d for op in graph.ops() for t in op.types for d in t.shape]
    size = sum(d if isinstance(d, int) else 1000 for d in dims)
    return len(ops), len(graph.outputs) + len(graph.updates), len(graph.ops()), size


def candidates(graph: Graph) -> Iterator[Graph]:
    """Smaller graphs, the boldest first."""
    outputs = graph.outputs
    if len(outputs) + len(graph.updates) > 1:
        yield from (_live(graph, [value], {}) for value in outputs)
        yield from (_live(graph, [], {k: v}) for k, v in graph.updates.items())
        half = len(outputs) // 2
        yield from (_live(graph, part, {}) for part in (outputs[:half], outputs[half:]) if part)
    ops = [op for op in graph.ops() if op.name not in ("input", "param", "const")]
    for op in reversed(ops):
        for operand in op.operands:  # the op does nothing
            if len(op.results) == 1 and operand.type == op.types[0]:
                yield from _swapped(graph, op, operand)
        yield from _swapped(graph, op, None)  # what comes before the op does not matter
    dims = dict.fromkeys(d for v in graph.inputs for d in v.shape)
    for dim in dims:
        for size in (0, 1, 2):
            if dim != size and (isinstance(dim, Poly) or size < dim):
                yield from _resized(graph, dim, size)


def _live(
    graph: Graph, outputs: list[Value] | tuple[Value, ...], updates: dict[str, Value]
) -> Graph:
    small = Graph(graph.name, graph.inputs, outputs, updates, graph.facts)
    used = {v for op in small.ops() for v in op.operands} | {*outputs, *updates.values()}
    inputs = [v for v in graph.inputs if v in used or any(isinstance(d, Poly) for d in v.shape)]
    return Graph(graph.name, inputs, outputs, updates, graph.facts)


def _swapped(graph: Graph, gone: Op, stand_in: Value | None) -> Iterator[Graph]:
    """The graph with the results of an op replaced: by an operand, or by new inputs."""
    try:
        with building():
            new: dict[Value, Value] = {}
            inputs = list(graph.inputs)
            for op in graph.ops():
                if op is gone and stand_in is not None:
                    new[op.results[0]] = new[stand_in]
                    continue
                if op is gone:
                    for result in op.results:
                        name = f"cut{len(inputs)}_{result.index}"
                        new[result] = OPS["input"](name=name, type=result.type)
                        inputs.append(new[result])
                    continue
                operands = [None if v is None else new[v] for v in op.inputs]
                new.update(zip(op.results, build(op.defn, operands, op.attrs).results, strict=True))
            outputs = [new[v] for v in graph.outputs]
            updates = {k: new[v] for k, v in graph.updates.items()}
            new_inputs = [new.get(v, v) for v in inputs]
            yield _live(
                Graph(graph.name, new_inputs, outputs, updates, graph.facts), outputs, updates
            )
    except IRError:
        return


def _resized(graph: Graph, old: Dim, size: int) -> Iterator[Graph]:
    """The graph with one dim another size, wherever it stands."""

    def swap(item: object) -> object:
        if isinstance(item, TensorType):
            return item.with_(shape=[size if d == old else d for d in item.shape])
        if isinstance(item, tuple):
            return tuple(map(swap, item))
        return size if isinstance(item, Poly) and item == old else item

    try:
        with building():
            new: dict[Value, Value] = {}
            for op in graph.ops():
                operands = [None if v is None else new[v] for v in op.inputs]
                attrs = {
                    k: tuple(size if d == old else d for d in v)
                    if k in ("shape", "size")
                    else swap(v)
                    for k, v in op.attrs.items()
                }
                new.update(zip(op.results, build(op.defn, operands, attrs).results, strict=True))
            outputs = [new[v] for v in graph.outputs]
            updates = {k: new[v] for k, v in graph.updates.items()}
            yield Graph(graph.name, [new[v] for v in graph.inputs], outputs, updates)
    except (IRError, TypeError):
        return


def keep(graph: Graph, seed: int, why: str, folder: Path = FOUND) -> Path:
    """Write a reduced failure as `<name>.ir`; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{graph.name}_{graph.digest()[:8]}.ir"
    reason = "\n".join(f"// {line}" for line in why.splitlines())
    path.write_text(f"// seed {seed}\n{reason}\n{graph}\n", encoding="utf-8")
    return path
