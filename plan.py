"""Which attention computes each site, and all that was measured to choose it.

print(fast.plan)                              per site: choice, runner-up, damage, predicted gain
fast.plan.resolve(Budget(cosine=0.98))        another choice from the same measurements, at once
fast.plan.revert("layers.7*")                 those sites exact again
fast.plan.save("plan"); Plan.load("plan")     plan.json and weights.safetensors
subquad.optimize(model, args, attention=plan) the model under it
"""

from __future__ import annotations

import glob as globs
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from torch import Tensor

from .budget import ERRORS, Budget, additive, said, total
from .choose import InfeasibleError, Matrix, choose
from .decisions import reason, runners_up, told
from .ir import PlanError, RecipeError
from .passes.sites import lies
from .tables import WIDTH, plain

if TYPE_CHECKING:
    from .frontend import OptimizedModule
    from .pareto import Pareto


@dataclass(frozen=True)
class Option:
    """What can compute one site, and what was measured of it.

    recipe: "exact", or a recipe as `optimize` takes it, "window(size=32)". local: relative error of the
    site's own result. errors: of the model's outputs with this site alone replaced, by name of
    `budget.ERRORS`. seconds, bytes: predicted for the site, by length in tokens. crossover: tokens from
    which it is faster than exact; None or 0 where that is not known. weights: names of its fitted tensors.
    """

    recipe: str
    local: float = 0.0
    errors: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[int, float] = field(default_factory=dict)
    bytes: Mapping[int, float] = field(default_factory=dict)
    crossover: int | None = None
    weights: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether this is the attention itself."""
        return self.recipe == "exact"

    def damage(self, name: str) -> float:
        """An error as what adds over sites; NaN where it was not measured."""
        if self.exact:
            return 0.0
        return additive(name, self.errors[name]) if name in self.errors else math.nan


@dataclass(frozen=True)
class SitePlan:
    """One attention: its options, the exact one first, and which of them is chosen and why.

    path, index: the module, and which of the model's softmaxes it is (a module that is called twice has
    two). mask: as of `Site`. refused: recipes that are no option, and why.
    """

    path: str
    index: int
    mask: str
    options: tuple[Option, ...]
    choice: int = 0
    reason: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if [o.exact for o in self.options] != [True, *[False] * (len(self.options) - 1)]:
            raise PlanError(f"the options of {self.place} are not one exact one, first, and recipes")
        if not 0 <= self.choice < len(self.options):
            raise PlanError(f"{self.place} has {len(self.options)} options, there is no number {self.choice}")

    @property
    def place(self) -> str:
        """Its path, for people."""
        return self.path or "the model"

    @property
    def chosen(self) -> Option:
        """The option that computes it."""
        return self.options[self.choice]


@dataclass(frozen=True)
class Plan:
    """Every attention of a model with its options and the choice among them. `str()` is a table.

    lengths: tokens that times are predicted at. machine: what they are predicted for. promised: bounds on
    the errors that held on batches that nothing else saw, by name; None where the choice was not verified.
    measured: errors, or "speedup", measured there. rest_seconds: predicted for all that is no attention, by
    length. tensors: fitted weights, of all options. note: what else is to be said, such as why a budget
    cannot be kept.
    """

    sites: tuple[SitePlan, ...]
    budget: Budget | None = None
    lengths: tuple[int, ...] = ()
    machine: str = ""
    promised: Mapping[str, float] | None = None
    measured: Mapping[str, float] | None = None
    rest_seconds: Mapping[int, float] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    note: str = ""

    def __post_init__(self) -> None:
        if self.sites and self.budget is not None and not self.lengths:
            raise PlanError("a plan of sites without lengths: times are predicted at numbers of tokens")
        for site in self.sites:
            for option in site.options:
                lacking = [n for n in self.lengths if n not in option.seconds]
                if lacking:
                    raise PlanError(f"{option.recipe} at {site.place} has no time at {lacking[0]} tokens")

    # ---- figures -----------------------------------------------------------------------------------

    def ran(self, site: SitePlan, option: Option, length: int) -> Option:
        """What computes a site at a length where `option` is chosen: with several lengths, and where time is
        what was asked for, the exact one below the crossover."""
        linear = self.budget is not None and self.budget.prefer == "linear"
        below = option.crossover is not None and length < option.crossover
        return site.options[0] if below and len(self.lengths) > 1 and not linear else option

    def seconds(self, length: int, choice: Sequence[int] | None = None) -> float:
        """Predicted time of the whole model at a length; choice: the option of each site, its own if None."""
        picked = self._picked(choice)
        ran = [self.ran(s, o, length).seconds[length] for s, o in zip(self.sites, picked)]
        return math.fsum([self.rest_seconds.get(length, 0.0), *ran])

    def speedup(self, length: int | None = None, choice: Sequence[int] | None = None) -> float:
        """Predicted time of the exact model over that of this one, at a length; the harmonic mean over all
        lengths if None (the mean share of time is one over it)."""
        if length is None:
            shares = [1 / self.speedup(n, choice) for n in self.lengths]
            return len(shares) / math.fsum(shares) if shares else 1.0
        exact, own = self.seconds(length, [0] * len(self.sites)), self.seconds(length, choice)
        return exact / own if own else 1.0

    def errors(self, choice: Sequence[int] | None = None) -> dict[str, float]:
        """Predicted errors of the outputs: the sites' own, as they add; NaN where one was not measured."""
        picked = self._picked(choice)
        return {
            name: total(name, math.fsum(option.damage(name) for option in picked))
            for name in self.error_names()
        }

    def error_names(self) -> tuple[str, ...]:
        """Errors that were measured site by site, those that the budget limits first."""
        limits = self.budget.limits() if self.budget is not None else {}
        known = {name for site in self.sites for option in site.options for name in option.errors}
        return tuple(sorted(known & {*ERRORS}, key=lambda name: (name not in limits, ERRORS.index(name))))

    def _picked(self, choice: Sequence[int] | None) -> list[Option]:
        choice = [site.choice for site in self.sites] if choice is None else choice
        return [site.options[j] for site, j in zip(self.sites, choice, strict=True)]

    def costs(self) -> Matrix:
        """Of each option of each site, seconds summed over the lengths, each length weighted by one over the
        exact model's time there (so that none outweighs another) times the geometric mean of those times."""
        shares = self._shares()
        return [
            [math.fsum(w * self.ran(site, o, n).seconds[n] for n, w in shares.items()) for o in site.options]
            for site in self.sites
        ]

    def _shares(self) -> dict[int, float]:
        exact = {n: self.seconds(n, [0] * len(self.sites)) for n in self.lengths}
        if not all(exact.values()):
            return dict.fromkeys(exact, 1.0)
        mean = math.exp(math.fsum(map(math.log, exact.values())) / max(len(exact), 1))
        return {n: mean / t / len(exact) for n, t in exact.items()}

    def damages(self) -> dict[str, Matrix]:
        """Of each option of each site, by error, what adds over sites; NaN where it was not measured."""
        return {
            name: [[o.damage(name) for o in site.options] for site in self.sites]
            for name in self.error_names()
        }

    # ---- choices -----------------------------------------------------------------------------------

    def resolve(self, budget: Budget) -> Plan:
        """The plan whose predicted time is least (or that has most sites linear) within a budget, from what
        was measured; what it promises is not verified. With several lengths `speedup` is the harmonic mean.

        An option that is faster at none of the lengths is chosen under prefer="linear" alone. A budget of
        time or memory alone gives the plan of least damage by the first of `error_names`. memory compares
        the largest site at the lengths. Raises PlanError where no choice keeps the budget, with the nearest,
        and for an error that was not measured site by site.
        """
        return replace(self._unmeasured(), budget=budget)._resolved(budget)

    def _resolved(self, budget: Budget) -> Plan:
        if not self.sites:
            return self
        limits = {name: additive(name, limit) for name, limit in budget.limits().items()}
        costs, damages = self.costs(), self.damages()
        for name in limits:
            if name not in damages and any(len(site.options) > 1 for site in self.sites):
                raise PlanError(
                    f"{budget} limits {said(name)}, which was not measured for the sites of this plan; it "
                    f"has {', '.join(map(said, damages)) or 'no errors'}\n"
                    "    calibrate with a budget that limits it"
                )
            damages.setdefault(name, [[0.0] * len(row) for row in costs])
        objective = costs
        if budget.prefer == "linear":
            objective = [
                [o.exact + t for o, t in zip(s.options, row)]
                for s, row in zip(self.sites, _scaled(costs, 0.5))
            ]
        elif not limits and self.error_names():
            least = damages[self.error_names()[0]]
            objective = [[d + t for d, t in zip(*rows)] for rows in zip(_scaled(least), _scaled(costs, 1e-6))]
        if budget.speedup is not None:
            damages["seconds"] = costs
            rest = math.fsum(w * self.rest_seconds.get(n, 0.0) for n, w in self._shares().items())
            exact = math.fsum([rest, *(row[0] for row in costs)])
            limits["seconds"] = exact / budget.speedup - rest
        usable = self._usable(budget)
        objective = [[x if ok else math.inf for x, ok in zip(*rows)] for rows in zip(objective, usable)]
        try:
            choice = choose(objective, damages, limits)
        except InfeasibleError as error:
            raise self._infeasible(budget, error.choice) from error
        sites = [replace(site, choice=j) for site, j in zip(self.sites, choice)]
        chosen = replace(self, sites=tuple(sites))
        reasons = [reason(chosen, at, usable[at]) for at in range(len(sites))]
        return replace(chosen, sites=tuple(replace(s, reason=why) for s, why in zip(sites, reasons)))

    def _usable(self, budget: Budget) -> list[list[bool]]:
        """By site and option, whether it can be chosen at all: somewhere faster, and small enough."""
        most = math.inf
        if budget.memory is not None:
            whole = [b for site in self.sites for b in site.options[0].bytes.values()]
            most = budget.memory * max(whole, default=math.inf)
        found = []
        for site in self.sites:
            row = []
            for option in site.options:
                ran = {n: self.ran(site, option, n) for n in self.lengths}
                faster = any(o.seconds[n] < site.options[0].seconds[n] for n, o in ran.items())
                small = most == math.inf or all(o.bytes.get(n, math.inf) <= most for n, o in ran.items())
                row.append((option.exact or faster or budget.prefer == "linear") and small)
            if not any(row):
                raise PlanError(
                    f"{budget} allows an attention {most:.4g} bytes, and nothing at {site.place} needs so "
                    f"few at {max(self.lengths)} tokens\n"
                    "    give it more, or make more recipes candidates there"
                )
            found.append(row)
        return found

    def _infeasible(self, budget: Budget, nearest: Sequence[int]) -> PlanError:
        told = [f"{said(name)} {error:.4g}" for name, error in self.errors(nearest).items()]
        told.append(f"speedup {self.speedup(None, nearest):.4g}")
        return PlanError(
            f"{budget}: no choice among the options of {len(self.sites)} sites keeps it, as predicted at "
            f"{', '.join(map(str, self.lengths))} tokens\n    the nearest has {', '.join(told)}\n"
            "    ask for less, for longer inputs, or make more recipes candidates"
        )

    def revert(self, glob: str) -> Plan:
        """The plan with the sites at a glob exact again; "layers.3.attn#7" is the one of index 7 there.

        Raises RecipeError for a glob that matches no site.
        """
        at = [lies(s.path, s.index, glob) for s in self.sites]
        if not any(at) and (self.sites or glob != "*"):
            known = ", ".join(dict.fromkeys(site.place for site in self.sites)) or "none"
            raise RecipeError(f"no attention lies at {glob!r}; sites: {known}")
        sites = [replace(s, choice=0, reason="reverted") if hit else s for s, hit in zip(self.sites, at)]
        same = all(s.choice == t.choice for s, t in zip(sites, self.sites))
        made = replace(self, sites=tuple(sites))
        return made if same else made._unmeasured()

    def _unmeasured(self) -> Plan:
        """Without what holds of one choice alone: what was measured of it, and weights of the model's own."""
        kept = {name for site in self.sites for option in site.options for name in option.weights}
        tensors = {name: x for name, x in self.tensors.items() if name in kept}
        return replace(self, promised=None, measured=None, note="", tensors=tensors)

    def recipes(self) -> dict[str, str]:
        """{path of a site: recipe} of the sites that are not exact, as `optimize(attention=)` takes it;
        a path that several sites have is given with the index, "layers.3.attn#7"."""
        times = Counter(site.path for site in self.sites)
        return {
            globs.escape(s.path) + (f"#{s.index}" if times[s.path] > 1 else ""): s.chosen.recipe
            for s in self.sites
            if not s.chosen.exact
        }

    def apply(
        self, model: Any, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> OptimizedModule:  # fmt: skip
        """`optimize(model, args, kwargs, attention=self, **options)`."""
        from .api import optimize

        made: Any = optimize(model, args, kwargs, attention=self, **options)
        return made

    def pareto(self, error: str | None = None) -> Pareto:
        """What time each error costs: the plans that no other beats in both. error: one of `error_names`,
        the first if None. Raises PlanError where it was not measured."""
        from .pareto import pareto

        return pareto(self, error)

    # ---- printing ----------------------------------------------------------------------------------

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = WIDTH) -> str:
        """The table and what is promised, as plain text of `width` columns."""
        return plain(*self._parts(), width=width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._parts()

    def _parts(self) -> Iterator[RenderableType]:
        yield from told(self)

    def runners_up(self) -> list[Option | None]:
        """What would come next at each site, the others as they are; None where there is one option."""
        return runners_up(self)

    # ---- files -------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write plan.json and weights.safetensors, each whole or not at all; returns the folder.

        Raises OSError where it cannot be written.
        """
        from .archive import save

        return save(self, folder)

    @staticmethod
    def load(folder: str | Path) -> Plan:
        """A plan that was saved. Raises PlanError for what is missing, broken, of another version, or not
        from one save."""
        from .archive import load

        return load(folder)

    def to_dict(self) -> dict[str, Any]:
        """The plan without its tensors, ready for json.dumps; "inf" and "nan" as text."""
        from .archive import to_dict

        return to_dict(self)


def _scaled(figures: Matrix, most: float = 1.0) -> Matrix:
    """Figures above the least of their site, so that their sum is at most `most`."""
    least = [min((x for x in row if math.isfinite(x)), default=0.0) for row in figures]
    above = [[x - low for x in row] for row, low in zip(figures, least)]
    whole = math.fsum(max((x for x in row if math.isfinite(x)), default=0.0) for row in above)
    return [[x * most / (whole or 1.0) for x in row] for row in above]
