"""Passes, pipelines of them, and running one with every step checked.

    exact = Pipeline.parse("canonicalize,fold,recognize{only=rope}")
    after, steps = exact.run(graph, check=outputs_in_float64)

A pass is a function from graph to graph; its keyword-only parameters are its options. A pass that
raises, or that changes results beyond the bound, is undone: the run goes on from the graph before
it, and the step says which application of which rule was guilty.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from ..ir import Event, Graph, IRError, RecipeError, Rule, diff, journal
from ..ir.core import describe
from ..ir.rewrite import Diff
from .options import Option, Reader, options_of, suggest

BOUND = 1e-9
"""Largest error of an exact pass, relative to the largest output; for a checker in float64."""

Checker = Callable[[Graph], Sequence[Any]]
"""Runs a graph on the example inputs and returns its outputs as arrays, best in float64."""


@dataclass(frozen=True)
class Pass:
    """A named function from graph to graph with options. Calling it runs it.

    exact: it changes no result, beyond rounding; a pipeline undoes it when it does.
    rules: the rules it applies, for passes made of rules.
    """

    name: str
    function: Callable[..., Graph]
    options: Mapping[str, Option]
    given: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    doc: str = ""
    rules: tuple[Rule, ...] = ()

    def __call__(self, graph: Graph, **options: Any) -> Graph:
        """`graph` rewritten, with these options over the ones given before."""
        return self.function(graph, **self.with_(**options).given)

    def with_(self, **options: Any) -> Pass:
        """This pass with other options. Raises IRError for an unknown one or a wrong kind."""
        given = dict(self.given)
        for name, value in options.items():
            if name not in self.options:
                hint = suggest(name, self.options)
                raise IRError(f"pass {self.name!r} has no option {name!r}{hint}")
            option = self.options[name]
            given[name] = option.check(value)
            if name == "only" and self.rules:
                known = [rule.name for rule in self.rules]
                for unknown in set(given[name]) - set(known):
                    hint = suggest(unknown, known)
                    raise IRError(f"pass {self.name!r} has no rule {unknown!r}{hint}")
            if given[name] == option.default:
                del given[name]
        ordered = {name: given[name] for name in self.options if name in given}
        return dataclasses.replace(self, given=MappingProxyType(ordered))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pass) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        shown = " ".join(f"{k}={self.options[k].text(v)}" for k, v in self.given.items())
        return f"{self.name}{{{shown}}}" if shown else self.name


PASSES: dict[str, Pass] = {}
"""Every pass by name; importing `subquad.passes` fills it."""


def pass_(
    function: Callable[..., Graph] | None = None,
    *,
    exact: bool = True,
    rules: tuple[Rule, ...] = (),
) -> Any:
    """Make a pass of a function `(graph, *, options) -> graph` and register it by its name.

    rules: the rules it applies; names in an option `only` are checked against them.
    """

    def make(function: Callable[..., Graph]) -> Pass:
        name = function.__name__
        if name in PASSES:
            raise IRError(f"pass {name!r} is declared twice")
        doc = (function.__doc__ or "").strip()
        PASSES[name] = Pass(name, function, options_of(function), {}, exact, doc, rules)
        return PASSES[name]

    return make if function is None else make(function)


@dataclass(frozen=True)
class Step:
    """What one pass did.

    error: largest difference of any output to the graph before, over the largest output; None when
    nothing was checked. undone: why the pass was taken back, naming the guilty rule, or None.
    text: the pass with its options.
    """

    name: str
    before: Graph
    after: Graph
    events: tuple[Event, ...]
    seconds: float
    error: float | None = None
    undone: str | None = None
    exact: bool = True
    text: str = ""

    @property
    def diff(self) -> Diff:
        """The ops removed and added."""
        return diff(self.before, self.after)

    @property
    def applied(self) -> Counter[str]:
        """How often each rule fired."""
        return Counter(e.rule for e in self.events if e.applied)

    @property
    def refused(self) -> tuple[Event, ...]:
        """The refusals: `event.rule`, `event.at`, `event.result.reason`."""
        return tuple(e for e in self.events if not e.applied)


@dataclass(frozen=True, init=False)
class Pipeline:
    """Passes in order. `limit` stops rewriting after that many applications in the whole run."""

    passes: tuple[Pass, ...]
    limit: int | None = None

    def __init__(self, *passes: Pass | Pipeline, limit: int | None = None):
        flat: list[Pass] = []
        for item in passes:
            flat += item.passes if isinstance(item, Pipeline) else (item,)
        object.__setattr__(self, "passes", tuple(flat))
        object.__setattr__(self, "limit", limit)

    @staticmethod
    def parse(text: str) -> Pipeline:
        """The pipeline printed as `text`. Raises IRError with a caret for anything else."""
        reader = Reader(text)
        passes: list[Pass] = []
        while not passes or reader.accept(","):
            passes.append(_read_pass(reader))
        limit = None
        if reader.accept(";"):
            position = reader.position
            name = reader.word()
            reader.expect("=")
            number = reader.word()
            if name != "limit" or not number.isdecimal() or len(number) > 18:
                reader.fail(position, "expected limit=<a number>")
            limit = int(number)
        if reader.tokens[reader.at][0] != "end":
            found = reader.tokens[reader.at][1]
            reader.fail(reader.position, f"expected ',' or ';', found {found!r}")
        return Pipeline(*passes, limit=limit)

    def __str__(self) -> str:
        text = ",".join(map(str, self.passes))
        return text if self.limit is None else f"{text};limit={self.limit}"

    def __call__(self, graph: Graph) -> Graph:
        """`graph` after every pass, unchecked; what raises, raises."""
        for item in self.passes:
            graph = item(graph)
        return graph

    def run(
        self, graph: Graph, check: Checker | None = None, bound: float = BOUND
    ) -> tuple[Graph, tuple[Step, ...]]:
        """`graph` after every pass, and a Step each.

        check: run on the original and after every pass that changed something. An exact pass that
        is off by more than `bound`, relative to the largest output, is undone. An approximate one
        stays and becomes what later passes are held against.
        Only errors in what was asked for (RecipeError) and interrupts escape; they carry a note
        naming the passes already run.
        """
        left = self.limit
        steps: list[Step] = []
        try:
            reference = None if check is None else _outputs(check, graph)
            for item in self.passes:
                step, outputs = _step(item, graph, left, check, reference, bound)
                steps.append(step)
                graph = step.after
                if not item.exact and outputs is not None:
                    reference = outputs
                if left is not None:
                    left -= 0 if step.undone else sum(step.applied.values())
        except BaseException as error:
            done = ", ".join(step.name for step in steps) or "none"
            error.add_note(f"passes already run: {done}")
            raise
        return graph, tuple(steps)


def _read_pass(reader: Reader) -> Pass:
    position = reader.position
    name = reader.word()
    if name not in PASSES:
        reader.fail(position, f"unknown pass {name!r}{suggest(name, PASSES)}")
    found, seen = PASSES[name], set()
    if reader.accept("{"):
        while not reader.accept("}"):
            position = reader.position
            key = reader.word()
            if key not in found.options:
                hint = suggest(key, found.options)
                reader.fail(position, f"pass {name!r} has no option {key!r}{hint}")
            if key in seen:
                reader.fail(position, f"option {key!r} is given twice")
            seen.add(key)
            reader.expect("=")
            position = reader.position
            pairs = reader.pairs()
            try:
                found = found.with_(**{key: found.options[key].parse(pairs)})
            except IRError as error:
                reader.fail(position, str(error))
    return found


def _outputs(check: Checker, graph: Graph) -> list[np.ndarray]:
    return [np.asarray(x) for x in check(graph)]


def _step(
    item: Pass,
    graph: Graph,
    limit: int | None,
    check: Checker | None,
    reference: list[np.ndarray] | None,
    bound: float,
) -> tuple[Step, list[np.ndarray] | None]:
    start = time.perf_counter()
    with journal(limit) as record:
        try:
            after = item(graph)
            problem = None
        except RecipeError:
            raise
        except Exception as error:
            after, problem = graph, f"raised {type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    events, measured, outputs = tuple(record.events), None, None
    if problem is None and check is not None and reference is not None:
        if after is graph:
            measured, outputs = 0.0, None
        else:
            outputs, measured, problem = _verdict(check, after, reference)
            if measured is not None and item.exact and not measured <= bound:
                problem = f"error {measured:.2g} is over the bound {bound:.2g}"
        if problem is not None:
            culprit = _culprit(item, graph, record.applied, check, reference, bound)
            after, problem, outputs = graph, f"{problem}; {culprit}", None
    step = Step(item.name, graph, after, events, seconds, measured, problem, item.exact, str(item))
    return step, outputs


def _verdict(
    check: Checker, graph: Graph, reference: list[np.ndarray]
) -> tuple[list[np.ndarray] | None, float | None, str | None]:
    try:
        outputs = _outputs(check, graph)
    except Exception as error:
        return None, None, f"the result does not run: {type(error).__name__}: {error}"
    return outputs, difference(reference, outputs), None


def difference(expected: Sequence[Any], actual: Sequence[Any]) -> float:
    """Largest absolute difference of an output, over its largest expected magnitude.

    Infinite where shapes, NaNs or infinities are not in the same places.
    """
    if len(expected) != len(actual):
        return float("inf")
    worst = 0.0
    for x, y in zip(map(np.asarray, expected), map(np.asarray, actual), strict=True):
        if x.shape != y.shape:
            return float("inf")
        if x.dtype.kind not in "fc":
            worst = worst if np.array_equal(x, y) else float("inf")
            continue
        finite = np.isfinite(x)
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
            return float("inf")
        if not np.isfinite(y[finite]).all():
            return float("inf")
        if finite.any():
            x, y = x[finite], y[finite]
            worst = max(worst, float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30)))
    return worst


def _culprit(
    item: Pass,
    graph: Graph,
    applied: int,
    check: Checker,
    reference: list[np.ndarray],
    bound: float,
) -> str:
    """Which application breaks the results, found by halving the number allowed."""

    def broken(limit: int) -> tuple[bool, tuple[Event, ...]]:
        with journal(limit) as record:
            try:
                after = item(graph)
            except Exception:
                return True, tuple(record.events)
        _, measured, problem = _verdict(check, after, reference)
        wrong = problem is not None or measured is None or not measured <= bound
        return wrong, tuple(record.events)

    if applied == 0 or broken(0)[0]:
        return f"the pass itself is guilty: {item.name} broke it with no rule applied"
    low, high = 0, applied  # not broken at low, broken at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if broken(middle)[0] else (middle, high)
    _, events = broken(high)
    guilty = [event for event in events if event.applied][high - 1 : high]
    if not guilty:
        return f"application {high} of {applied} is guilty"
    rule, op = guilty[0].rule, guilty[0].at
    where = f" at {op.source}" if op.source else ""
    return (
        f"rule {rule!r} is guilty: its use on {describe(op.defn, op.inputs)}{where} "
        f"is application {high} of {applied}"
    )
