"""What time each error costs: the plans of one model that no other beats in both, as a table and a plot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from .budget import said, total
from .choose import frontier
from .extras import extra
from .ir import PlanError
from .plan import Plan
from .tables import WIDTH, grid, plain


@dataclass(frozen=True)
class Tradeoff:
    """One plan: its predicted error of the outputs, how many times faster the whole model is predicted to be
    (harmonic mean over the lengths), how many sites are linear, and the option of each site."""

    error: float
    speedup: float
    linear: int
    choice: tuple[int, ...]


@dataclass(frozen=True)
class Pareto:
    """Plans by rising error and rising speedup; prints as a table. error: its name, of `budget.ERRORS`."""

    plan: Plan
    error: str
    points: tuple[Tradeoff, ...]

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = WIDTH) -> str:
        """The table as plain text of `width` columns."""
        return plain(*self._parts(), width=width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._parts()

    def to_dict(self) -> dict[str, Any]:
        """The points as numbers, ready for json.dumps."""
        points = [{"error": p.error, "speedup": p.speedup, "linear": p.linear} for p in self.points]
        return {"error": self.error, "lengths": list(self.plan.lengths), "points": points}

    def _parts(self) -> Iterator[RenderableType]:
        each = [f"at {n}>" for n in self.plan.lengths]
        table = grid(f"{said(self.error)}>", "x faster>", *each, "linear>")
        for p in self.points:
            times = [f"{self.plan.speedup(n, p.choice):.3g}" for n in self.plan.lengths]
            table.add_row(f"{p.error:.3g}", f"{p.speedup:.3g}", *times, f"{p.linear}/{len(p.choice)}")
        yield table
        where = f" on {self.plan.machine}" if self.plan.machine else ""
        yield Text(f"predicted, whole model{where}; errors of sites as they add, not verified")

    def plot(self, path: str | Path) -> Path:
        """Write the points as a picture (PNG, or what the suffix says); returns the path.

        Raises SubquadError without matplotlib.
        """
        extra("matplotlib", "plot", "drawing a plot")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot([p.error for p in self.points], [p.speedup for p in self.points], "o-")
        budget = self.plan.budget.limits() if self.plan.budget is not None else {}
        if self.error in budget:
            axes.axvline(budget[self.error], linestyle="--", color="grey", label="budget")
            axes.legend()
        axes.set_xlabel(f"predicted {said(self.error)}")
        axes.set_ylabel("times faster, predicted")
        axes.grid(True, alpha=0.3)
        path = Path(path)
        figure.savefig(path, dpi=120)
        return path


def pareto(plan: Plan, error: str | None = None) -> Pareto:
    """The frontier of a plan's options. Raises PlanError for an error that was not measured site by site."""
    names = plan.error_names()
    if error is None and names:
        error = names[0]
    if error is None or error not in names:
        had = ", ".join(names) or "none: no site has a recipe that was scored"
        raise PlanError(f"pareto({'' if error is None else repr(error)}): the errors of this plan are {had}")
    found = frontier(plan.costs(), plan.damages(), error)
    points = [
        Tradeoff(
            total(error, point.damage),
            plan.speedup(None, point.choice),
            sum(map(bool, point.choice)),
            point.choice,
        )
        for point in found
    ]
    return Pareto(plan, error, tuple(points))
