"""Where the tokens of an attention come from: what q, k and v are projected from, and their grid."""

from __future__ import annotations

from collections.abc import Iterator

from ..ir import Dim, Graph, Op, Value
from ..ir.types import product

THROUGH = frozenset({
    "permute", "reshape", "expand", "slice", "cast", "rope", "rms_norm", "layer_norm", "add", "mul", "div",
    "sub", "cat", "neg",
})  # fmt: skip
"""Ops that stand between a projection and its attention: heads set apart, positions, norms of q and k."""

PICTURE = frozenset({"convolution", "max_pool2d", "avg_pool2d"})
"""Ops whose result has its tokens laid out in space, [b, c, *grid]."""


def projected(q: Value, k: Value, v: Value) -> Value | None:
    """x [b, n, c], when q [b,h,n,d], k and v are linear projections of one x and nothing else."""
    sources = {source for part in (q, k, v) for source in _sources(part)}
    if len(sources) != 1:
        return None
    (x,) = sources
    while x.rank != 3:
        if x.op.name != "reshape":
            return None
        x = x.op.args[0]
    return x if x.shape[:2] == (q.shape[0], q.shape[2]) else None


def _sources(value: Value) -> Iterator[Value]:
    """The inputs of the projections that a value is made from; a value itself where there is none."""
    queue, seen = [value], {value}
    while queue:
        x = queue.pop()
        if x.op.name == "linear" or (x.op.name == "matmul" and x.op.args[1].op.name == "param"):
            yield x.op.args[0]
        elif x.op.name in THROUGH:
            fresh = [y for y in x.op.operands if y not in seen and _varies(y)]
            seen.update(fresh)
            queue += fresh
        else:
            yield x


def _varies(x: Value) -> bool:
    """Whether x can carry tokens: not a weight, a constant, or positions computed from nothing."""
    queue, seen = [x], {x}
    while queue:
        op = queue.pop().op
        if op.name in ("input", "opaque", "linear", "matmul", "embedding"):
            return True
        if len(seen) > 64:
            return True  # it is made of much: do not search on
        fresh = [y for y in op.operands if y not in seen]
        seen.update(fresh)
        queue += fresh
    return False


def grids(graph: Graph) -> dict[Dim, tuple[tuple[Dim, ...], int]]:
    """For each number of tokens that a picture was laid out as: its grid, and the tokens before it.

    A picture [b, c, *grid] becomes tokens where its grid is flattened; class and register tokens are
    joined before them. A number of tokens with two different grids is left out.
    """
    found: dict[Dim, tuple[tuple[Dim, ...], int]] = {}
    clash: set[Dim] = set()

    def note(tokens: Dim, grid: tuple[Dim, ...], before: int) -> None:
        if found.setdefault(tokens, (grid, before)) != (grid, before):
            clash.add(tokens)

    for op in graph.ops():
        if op.name == "reshape" and (grid := _flattened(op)) is not None:
            note(product(grid), grid, 0)
    for op in graph.ops():
        if op.name == "cat" and op.results[0].rank == 3 and op.attrs["dim"] == 1:
            *before, last = (part.shape[1] for part in op.args)
            if last in found and found[last][1] == 0 and all(isinstance(n, int) for n in before):
                note(op.results[0].shape[1], found[last][0], sum(before))
    return {n: grid for n, grid in found.items() if n not in clash}


def _flattened(op: Op) -> tuple[Dim, ...] | None:
    """The grid that a reshape lays end to end, of a picture [b, c, *grid] or [b, *grid, c]."""
    x, y = op.args[0], op.results[0]
    if x.rank not in (4, 5) or y.rank != 3 or not _picture(x):
        return None
    if y.shape == (*x.shape[:2], product(x.shape[2:])):
        return x.shape[2:]
    return x.shape[1:-1] if y.shape == (x.shape[0], product(x.shape[1:-1]), x.shape[-1]) else None


def _picture(x: Value) -> bool:
    while x.op.name not in PICTURE:
        if x.op.name not in THROUGH | {"batch_norm", "relu", "gelu", "silu", "sigmoid"} or not x.op.args:
            return False
        x = x.op.args[0]
    return True
