"""What people read: the log of a run, as a table, as plain data, as JSON.

    print(fast.log)                  one row a pass, then undone, refused, what could be gained
    fast.log.why("attention")        every softmax: its mask, or what failed and what to change
    fast.log.why("layers.3.attn")    what stands at a place in the model, and what was refused there
    fast.log.why("recognize")        the refusals of a rule or a pass
    fast.log.diff("recognize")       the ops a pass removed and added, with their sources
    fast.log.to_dict()               all of it, ready for json.dumps

FLOPs and bytes are symbolic in the graph; they are shown at the sizes of the example inputs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .ir import Cost, Dim, Graph, IRError, No, Op, cost, diff, print_graph
from .ir.dims import evaluate
from .passes import Site, Step
from .tables import WIDTH, count, error, grid, plain
from .verdicts import Sites

DATA = frozenset({"input", "param", "const"})
"""Ops that stand for data: nothing is computed, so the log does not count them."""

SAID = ("raise_attention", "linearize:")
"""What rules start with whose refusals the sites tell in full."""

SHOWN = 5
"""Places listed for one refusal; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What a recipe would save at one attention site, for `PassLog.gains`. Costs may be symbolic.

    site: module path. source: where in the model. before, after: the cost of the attention as it
    is and as `recipe` would compute it. call: what the user types to get it.
    """

    site: str
    source: str
    recipe: str
    before: Cost
    after: Cost
    call: str
    kind: str = "approximate"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rule that matched and said no: where, and why."""

    step: str
    rule: str
    source: str
    reason: str
    op: Op

    def __str__(self) -> str:
        return f"{self.rule} ({self.step}) at {self.source or repr(self.op)}: {self.reason}"


class Refusals(tuple[Refusal, ...]):
    """Refusals, nearest to the question first; prints the attentions asked for, then one a line.

    sites: the attentions that were asked for, None where the question was another.
    """

    sites: Sites | None = None

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = WIDTH) -> str:
        """What is printed, in `width` columns."""
        if self.sites is None:
            return "\n".join(map(str, self)) or "no refusals"
        rest = [str(refusal) for refusal in self if not refusal.rule.startswith(SAID)]
        return "\n".join((self.sites.explain(width), *([""] if rest else []), *rest))


class PassLog:
    """The steps of one run of a pipeline. `str()` is a table; everything in it is also data.

    steps: what the pipeline did, in order. gains: what could be had by naming a recipe.
    sizes: values of the symbolic dims at the example inputs. sites: every softmax of the model.
    """

    def __init__(
        self,
        steps: Iterable[Step],
        gains: Iterable[Gain] = (),
        *,
        sizes: Mapping[str, int] | None = None,
        sites: Iterable[Site] = (),
    ):
        self.steps, self.gains = tuple(steps), tuple(gains)
        self.sizes, self.sites = dict(sizes or {}), Sites(sites)

    # ---- questions -------------------------------------------------------------------------

    def applied(self, step: Step | None = None) -> Counter[str]:
        """How often each rule fired, in one step or in all."""
        steps = self.steps if step is None else (step,)
        return sum((s.applied for s in steps), Counter())

    def refusals(self, step: Step | None = None) -> Refusals:
        """Every refusal, in one step or in all; the same one at the same place is listed once."""
        found: dict[tuple[str, str, str], Refusal] = {}
        for s in self.steps if step is None else (step,):
            for event in s.events:
                if isinstance(event.result, No):
                    at = event.result.at.op if event.result.at is not None else event.at
                    source = event.at.source or at.source
                    refusal = Refusal(s.name, event.rule, source, event.result.reason, event.at)
                    key = (event.rule, source or str(id(event.at)), refusal.reason)
                    found.setdefault(key, refusal)
        return Refusals(found.values())

    def why(self, name: str) -> Refusals:
        """Refusals of rules or passes called `name`, then those that contain it, then those at a
        place in the model that contains it; empty when nothing refused.

        "attention", and the path of a module or a source line with attention in it, also bring the
        `sites`: what is printed says of each what it is, its mask, or what failed and what to change.
        """
        wanted = name.lower()

        def distance(r: Refusal) -> int:
            if wanted in (r.rule.lower(), r.step.lower()):
                return 0
            if wanted in r.rule.lower() or wanted in r.step.lower():
                return 1
            if wanted in r.source.lower() or wanted == r.op.name:
                return 2
            return 3 if wanted in r.reason.lower() else 4

        found = Refusals(sorted((r for r in self.refusals() if distance(r) < 4), key=distance))
        sites = self.sites if wanted == "attention" else self.sites.at(name)
        if sites or wanted == "attention":
            found.sites = sites
        return found

    def step(self, which: int | str | Step) -> Step:
        """A step by position, by the name of its pass (the last one of that name), or itself."""
        if isinstance(which, int):
            return self.steps[which]
        if not isinstance(which, str):
            return which
        for step in reversed(self.steps):
            if step.name == which:
                return step
        names = ", ".join(s.name for s in self.steps) or "none"
        raise IRError(f"no step called {which!r} in this log; it has: {names}")

    def diff(self, which: int | str | Step) -> str:
        """The lines of the graph that a step took away (-) and put in (+), with their sources."""
        step = self.step(which)
        change = diff(step.before, step.after)
        gone, new = set(change.removed), set(change.added)
        lines = [f"{step.name}: {len(gone)} ops removed, {len(new)} added"]
        lines += (f"- {text}" for op, text in _lines(step.before) if op in gone)
        lines += (f"+ {text}" for op, text in _lines(step.after) if op in new)
        return "\n".join(lines)

    def number(self, dim: Dim) -> int | None:
        """A dim at the example sizes; None where one of its symbols has no value."""
        try:
            return evaluate(dim, self.sizes)
        except IRError:
            return None

    def cost(self) -> tuple[Cost, Cost]:
        """The cost before the first step and after the last, symbolic in the dims."""
        if not self.steps:
            return Cost(), Cost()
        return cost(self.steps[0].before), cost(self.steps[-1].after)

    @property
    def error(self) -> float | None:
        """The largest error of a checked step that was kept; None if none was checked."""
        errors = [s.error for s in self.steps if s.error is not None and not s.undone]
        return max(errors, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The log as numbers, strings, lists and dicts; polynomials as text."""
        gains = [
            {"site": g.site, "source": g.source, "recipe": g.recipe, "kind": g.kind, "call": g.call,
             "before": self._cost_dict(g.before), "after": self._cost_dict(g.after)}
            for g in self.gains
        ]  # fmt: skip
        sites = [site.to_dict() for site in self.sites]
        steps = [self._step_dict(s) for s in self.steps]
        plain = {"sizes": self.sizes, "steps": steps, "sites": sites, "gains": gains}
        made: dict[str, Any] = json.loads(json.dumps(plain, default=str))
        return made

    def _step_dict(self, step: Step) -> dict[str, Any]:
        refused = self.refusals(step)
        return {
            "pass": step.name,
            "seconds": step.seconds,
            "ops": [size(step.before), size(step.after)],
            "before": self._cost_dict(cost(step.before)),
            "after": self._cost_dict(cost(step.after)),
            "error": step.error,
            "applied": dict(self.applied(step)),
            "refused": [{"rule": r.rule, "source": r.source, "reason": r.reason} for r in refused],
            "undone": step.undone,
        }

    def _cost_dict(self, c: Cost) -> dict[str, Any]:
        return {
            "flops": self.number(c.flops), "bytes": self.number(c.bytes),
            "flops_symbolic": str(c.flops), "bytes_symbolic": str(c.bytes),
        }  # fmt: skip

    # ---- printing --------------------------------------------------------------------------

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<PassLog: {', '.join(s.name for s in self.steps)}>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._parts()

    def text(self, width: int = WIDTH, *, symbolic: bool = False) -> str:
        """The log as plain text of `width` columns; with `symbolic`, costs as polynomials below."""
        parts = list(self._parts())
        if symbolic:
            parts.append(self._polynomials())
        return plain(*parts, width=width)

    def _parts(self) -> Iterable[RenderableType]:
        yield self._table()
        for heading, lines in (("undone", self._undone()), ("refused", self._refused())):
            if lines:
                yield Text(f"\n{heading}", style="bold")
                for line in lines:
                    yield Padding(Text(line, overflow="fold"), (0, 0, 0, 2))
        if self.gains or any(site.decision == "attention" for site in self.sites):
            yield from self._gained()

    def _table(self) -> Table:
        table = grid("pass", "ms>", "ops>", "FLOPs>", "bytes>", "max error>", "rules applied")
        for s in self.steps:
            rules = ", ".join(f"{rule} {n}" for rule, n in self.applied(s).most_common())
            table.add_row(
                s.name,
                f"{s.seconds * 1e3:.1f}",
                f"{size(s.before)} -> {size(s.after)}",
                *self._ratios(s.before, s.after),
                error(s.error),
                ("UNDONE; " if s.undone else "") + (rules or "-"),
            )
        if self.steps:
            first, last = self.steps[0].before, self.steps[-1].after
            at = ", ".join(f"{k} = {v}" for k, v in self.sizes.items())
            before, after = self.cost()
            totals = f"{self._count(before.flops)}FLOP -> {self._count(after.flops)}FLOP"
            table.add_row(
                "all",
                f"{sum(s.seconds for s in self.steps) * 1e3:.1f}",
                f"{size(first)} -> {size(last)}",
                *self._ratios(first, last),
                error(self.error),
                totals + (f" at {at}" if at else ""),
                style="bold",
            )
        return table

    def _ratios(self, before: Graph, after: Graph) -> tuple[str, str]:
        old, new = cost(before), cost(after)
        return self._ratio(old.flops, new.flops), self._ratio(old.bytes, new.bytes)

    def _ratio(self, old: Dim, new: Dim) -> str:
        if old == new:
            return "1.00x"
        a, b = self.number(old), self.number(new)
        return "?" if a is None or b is None or not a else f"{b / a:.2f}x"

    def _count(self, dim: Dim) -> str:
        n = self.number(dim)
        return f"{dim} " if n is None else count(n)

    def _undone(self) -> list[str]:
        return [f"{s.name}: {s.undone}" for s in self.steps if s.undone]

    def _refused(self) -> list[str]:
        places: dict[tuple[str, str, str], list[str]] = {}
        for r in self.refusals():
            places.setdefault((r.step, r.rule, r.reason), []).append(r.source or repr(r.op))
        lines = []
        for (step, rule, reason), where in places.items():
            more = f" and {len(where) - SHOWN} more" if len(where) > SHOWN else ""
            rule = rule if rule == step else f"{step} / {rule}"
            lines.append(f"{rule} at {', '.join(where[:SHOWN])}{more}: {reason}")
        return lines

    def _gained(self) -> Iterable[RenderableType]:
        at = ", ".join(f"{k} = {v}" for k, v in self.sizes.items())
        title = "what could be gained next, if you ask for it"
        yield Text(f"\n{title}{f' (predicted at {at})' if at else ''}", style="bold")
        recipes: dict[tuple[str, str, Cost, Cost], list[Gain]] = {}
        for g in sorted(self.gains, key=self._share):
            if self._share(g) < 1:
                recipes.setdefault((g.recipe, g.kind, g.before, g.after), []).append(g)
        if not recipes:
            nothing = "nothing: no recipe honours these masks and saves FLOPs at these lengths"
            yield Padding(Text(nothing, overflow="fold"), (0, 0, 0, 2))
            return
        places: dict[str, Table] = {}
        hidden: Counter[str] = Counter()
        usable = sorted(recipes.items(), key=lambda item: item[0][1] == "needs training")
        for (recipe, kind, old, new), gains in usable:
            place = gains[0].site + (f" and {len(gains) - 1} like it" if len(gains) > 1 else "")
            if place in places and places[place].row_count == SHOWN:
                hidden[place] += 1
                continue
            columns = ("recipe", "kind", "FLOPs each>", ">", "bytes each>", ">")
            row = [recipe, kind]
            for a, b in ((old.flops, new.flops), (old.bytes, new.bytes)):
                row += [f"{self._count(a).strip()} -> {self._count(b).strip()}", self._ratio(a, b)]
            places.setdefault(place, grid(*columns)).add_row(*row)
        for place, table in places.items():
            yield Padding(Text(f"at {place}", overflow="fold"), (0, 0, 0, 2))
            yield Padding(table, (0, 0, 0, 4))
            if hidden[place]:
                more = f"and {hidden[place]} more recipes that save FLOPs here: `subquad recipes`"
                yield Padding(Text(more, overflow="fold"), (0, 0, 0, 4))
        best = min(self.gains, key=lambda gain: (gain.kind == "needs training", self._share(gain)))
        yield Padding(Text(best.call, overflow="fold"), (0, 0, 0, 2))

    def _share(self, gain: Gain) -> float:
        """FLOPs after / before at the example sizes; 0 where they are unknown."""
        before, after = self.number(gain.before.flops), self.number(gain.after.flops)
        return 0.0 if after is None or not before else after / before

    def _polynomials(self) -> RenderableType:
        before, after = self.cost()
        table = grid("", "before the first pass", "after the last")
        table.add_row("FLOPs", str(before.flops), str(after.flops))
        table.add_row("bytes", str(before.bytes), str(after.bytes))
        return Padding(table, (1, 0, 0, 0))


def size(graph: Graph) -> int:
    """How many ops of a graph compute something."""
    return sum(op.name not in DATA for op in graph.ops())


def _lines(graph: Graph) -> list[tuple[Op, str]]:
    """Each op but the inputs with its line of the printed graph."""
    text = print_graph(graph, sources=True).splitlines()
    own = [line[2:] for line in text if line.startswith("  %")]  # nested graphs are indented more
    ops: Sequence[Op] = [op for op in graph.ops() if op.name != "input"]
    return list(zip(ops, own, strict=True))
