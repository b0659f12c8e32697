"""From "the result is wrong" to one rule application and a small file that shows it.

    culprit = subquad.bisect(model, (x,))
    print(culprit)          # pass, rule, place in the model, error, file

The file holds two graphs, `before` and `after`: only the ops that the application replaced and
those it made, with everything they share cut off and turned into inputs. `subquad.ir.parse_many`
reads it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .ir import DTYPES, OPS, Event, Graph, IRError, Op, Value, build, building, evaluate
from .ir.dims import evaluate as evaluate_dim
from .ir.interpret import bind
from .store import write

Check = Callable[[Graph], Sequence[Any]]


@dataclass(frozen=True)
class Culprit:
    """The one change that breaks the bound.

    step: the pass. rule: the rule, or "" where the pass itself, without a rule, is guilty.
    application, of: which of how many applications. error: of the whole model, relative to its
    largest output. random_error: of `after` against `before` on random inputs; None where they do
    not run. path: the file that holds both.
    """

    step: str
    rule: str
    source: str
    application: int
    of: int
    error: float
    random_error: float | None
    before: Graph
    after: Graph
    path: Path

    def __str__(self) -> str:
        what = f"rule {self.rule!r} of pass {self.step!r}" if self.rule else f"pass {self.step!r}"
        number = f", application {self.application} of {self.of}" if self.rule else ""
        where = f" at {self.source}" if self.source else ""
        alone = "" if self.random_error is None else f", on random inputs {self.random_error:.2g}"
        size = sum(op.name != "input" for g in (self.before, self.after) for op in g.ops())
        return (
            f"guilty: {what}{where}{number}\n"
            f"    error of the whole {self.error:.2g}{alone}\n"
            f"    {self.path}: before and after, {size} ops"
        )


def bisect(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    pipeline: Any = None,
    bound: float | None = None,
    path: str | Path = "subquad-bisect.ir",
    dynamic_shapes: Any = None,
) -> Culprit | None:
    """Find the rule application that makes the result wrong; None when no pass breaks the bound.

    model: a module, or a Graph with `args` as its inputs (and `kwargs` as its params).
    pipeline: a Pipeline or its text; the exact default where None.
    bound: largest error over the largest output, in float64; the pipeline's own where None.
    path: where the reproduction is written, atomically. Takes about log2(applications) runs.
    """
    from . import passes
    from .passes.pipeline import BOUND, Pipeline, difference

    chosen = passes.EXACT if pipeline is None else pipeline
    chosen = Pipeline.parse(chosen) if isinstance(chosen, str) else chosen
    bound = BOUND if bound is None else bound
    graph, check, sizes = _subject(model, args, kwargs, dynamic_shapes)
    reference = list(check(graph))

    def attempt(passes: Any, limit: int | None) -> tuple[float, tuple[Any, ...]]:
        after, steps = Pipeline(*passes, limit=limit).run(graph)
        if any(step.undone for step in steps):
            return float("inf"), steps
        try:
            return difference(reference, list(check(after))), steps
        except Exception:  # what a broken graph raises is anybody's guess
            return float("inf"), steps

    wrong, steps = attempt(chosen.passes, chosen.limit)
    if wrong <= bound:
        return None
    total = sum(len(_applied(step)) for step in steps)
    if total == 0 or attempt(chosen.passes, 0)[0] > bound:
        for k in range(1, len(chosen.passes) + 1):
            wrong, steps = attempt(chosen.passes[:k], 0)
            if wrong > bound:
                break
        return _finish(steps[-1], None, 0, total, wrong, sizes, Path(path))
    low, high = 0, total  # right at low, wrong at high
    while high - low > 1:
        middle = (low + high) // 2
        right = attempt(chosen.passes, middle)[0] <= bound
        low, high = (middle, high) if right else (low, middle)
    wrong, steps = attempt(chosen.passes, high)
    step = [s for s in steps if _applied(s)][-1]
    return _finish(step, _applied(step)[-1], high, total, wrong, sizes, Path(path))


def _subject(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> tuple[Graph, Check, dict[str, int]]:
    """The graph, how to run one in float64, and the sizes of its symbolic dims."""
    if isinstance(model, Graph):
        params = dict(kwargs or {})

        def check(graph: Graph) -> list[Any]:
            outputs, updates = evaluate(graph, list(args), params)
            return [*outputs, *(updates[name] for name in sorted(updates))]

        shapes = {v: np.shape(x) for v, x in zip(model.inputs, args)}
        return model, check, bind(shapes)
    from .frontend.capture import capture
    from .verify import Verifier

    captured = capture(model, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
    inputs = captured.signature.flatten(tuple(args), dict(kwargs or {}))
    shapes = {v: tuple(x.shape) for v, x in zip(captured.graph.inputs, inputs)}
    verifier = Verifier(inputs, captured.tensors, captured.modules)
    return captured.graph, verifier, bind(shapes)


def _applied(step: Any) -> list[Event]:
    return [event for event in step.events if event.applied]


def _finish(
    step: Any,
    event: Event | None,
    application: int,
    total: int,
    wrong: float,
    sizes: dict[str, int],
    path: Path,
) -> Culprit:
    if event is not None and isinstance(event.result, Value):
        new = event.result
        old = next(v for v in event.at.results if v.type == new.type)
        before, after = fragment([old], [new])
        rule, source = event.rule, event.at.source
    else:
        before, after = fragment(step.before.outputs, step.after.outputs)
        rule = source = ""
    alone = _on_random(before, after, sizes)
    culprit = Culprit(
        step.name, rule, source, application, total, wrong, alone, before, after, path
    )
    head = "\n".join(f"// {line}" for line in str(culprit).splitlines()[:2])
    write(path, f"{head}\n\n{before}\n\n{after}\n")
    return culprit


def fragment(olds: Sequence[Value], news: Sequence[Value]) -> tuple[Graph, Graph]:
    """Graphs `before` and `after` of the ops that only one side has; what both share is an input.

    Constants stay constants, because rules look at their values.
    """
    sides = [_below(values, set()) for values in (olds, news)]
    shared = set(sides[0]) & set(sides[1])
    leaf = {"input", "param"}
    bodies = [[op for op in side if op not in shared and op.name not in leaf] for side in sides]
    used = [v for body, roots in zip(bodies, (olds, news))
            for v in (*(x for op in body for x in op.operands), *roots)]  # fmt: skip
    own = {op for body in bodies for op in body}
    with building():
        env: dict[Value, Value] = {}
        for value in dict.fromkeys(used):
            if value.op in own:
                continue
            if value.op.name == "const":
                env[value] = value
            else:
                name = f"x{sum(v.op.name == 'input' for v in env.values())}"
                env[value] = OPS["input"](name=name, type=value.type)
        inputs = [v for v in env.values() if v.op.name == "input"]
        graphs = []
        for name, body, roots in zip(("before", "after"), bodies, (olds, news)):
            for op in body:
                made = build(op.defn, [None if v is None else env[v] for v in op.inputs], op.attrs)
                made.source = made.source or op.source
                env.update(zip(op.results, made.results))
            graphs.append(Graph(name, inputs, [env[v] for v in roots]))
    return graphs[0], graphs[1]


def _below(roots: Sequence[Value], seen: set[Op]) -> list[Op]:
    """Every op that the roots need, operands first."""
    order: list[Op] = []
    stack = [(root.op, False) for root in reversed(roots)]
    while stack:
        op, done = stack.pop()
        if done:
            order.append(op)
        elif op not in seen:
            seen.add(op)
            stack.append((op, True))
            stack += [(v.op, False) for v in op.operands if v.op not in seen]
    return order


def _on_random(before: Graph, after: Graph, sizes: Mapping[str, int]) -> float | None:
    """The difference of two graphs on random inputs, or None where they do not run in numpy."""
    from .passes.pipeline import difference

    generator = np.random.default_rng(0)
    try:
        arrays = []
        for value in before.inputs:
            shape = tuple(evaluate_dim(dim, sizes) for dim in value.shape)
            data = generator.standard_normal(shape)
            arrays.append(data > 0 if value.dtype is DTYPES["bool"] else data)
        return difference(evaluate(before, arrays)[0], evaluate(after, arrays)[0])
    except (IRError, ValueError, TypeError, IndexError):
        return None
