"""Whether one way to compute is cheaper than another, at the lengths a model is used with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..ir import Dim, Graph, Op, Value, cost, symbol
from ..ir.dims import at_least, evaluate, substitute, symbols

TYPICAL = 4096
"""The size a symbolic dim is taken to have where neither `sizes` nor the facts say otherwise."""


def cheaper(graph: Graph, before: Dim, after: Dim, sizes: Mapping[str, int], gain: int = 1) -> bool:
    """Whether gain * `after` is less than `before`: provably under the graph's facts, or at these sizes.

    A symbol that `sizes` does not name is taken to be `TYPICAL`, within its facts.
    """
    gap = before - after * gain
    lows = {name: symbol(name) + low for name, low, _ in graph.facts}
    known = substitute(gap, lows)
    if at_least(known, 1) or at_least(-known, 0):
        return at_least(known, 1)
    env = dict.fromkeys(symbols(gap), TYPICAL)
    for name, low, high in graph.facts:
        if name in env:
            env[name] = max(low, min(TYPICAL, TYPICAL if high is None else high))
    env.update((name, size) for name, size in sizes.items() if name in env)
    return evaluate(gap, env) > 0


def made(result: Value, given: Collection[Value | None]) -> set[Op]:
    """The ops under `result` that are not among what was there."""
    found: set[Op] = set()
    stack = [result]
    while stack:
        x = stack.pop()
        if x not in given and x.op not in found:
            found.add(x.op)
            stack.extend(x.op.operands)
    return found


def flops(what: Iterable[Op] | Value, given: Collection[Value | None] = ()) -> Dim:
    """The FLOPs of some ops, or of those under a value down to what was given."""
    total: Dim = 0
    for op in made(what, given) if isinstance(what, Value) else what:
        total = total + cost(op).flops
    return total
