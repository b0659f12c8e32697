"""Every recipe at every site of a captured model: fitted, scored, priced. What a plan chooses from."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from .assemble import assembled
from .budget import Budget, drop
from .calibration import Batches, Calibration
from .distil import LOSSES, fit_end_to_end
from .fit import fit_layers
from .frontend import Captured, OptimizedModule
from .ir import CalibrationError, Graph, Op, RecipeError, Value
from .machine import Machine
from .passes import RECIPES, Pipeline, Recipe, canonicalize, find_sites, linearize, recipe_named
from .passes.prices import price
from .passes.sites import lies
from .plan import Option, SitePlan
from .roofline import Roofline
from .runtime import crossover
from .scoring import Nudges, errors_of, first_order, local_errors, rows_of
from .store import Store
from .taps import Taps

LEARNING = ("slots", "lolcats(size=32)", "hedgehog")
"""What is fitted and tried where no recipes are named: the strongest known of those that learn."""

MOST = 4
"""Recipes at a site that are put into the model to be scored: those least harmful to first order."""

LOOKED = 2
"""Batches that recipes are screened on."""

LINEAR = 1.1
"""FLOPs that grow with a lower power of tokens than this are linear; at finite sizes it is not 1."""

Say = Callable[[str], None]


class Search:
    """Fits, scores and prices recipes at the attentions of a captured model.

    graph: the captured model after the exact passes. batches: None where there are none: then the
    example inputs stand for them, and only recipes that learn nothing are candidates. lengths: tokens that
    times are wanted at; sizes: those of the open dims, by tokens. here: whether
    this is the machine, so that it can be timed.
    """

    def __init__(
        self,
        model: nn.Module | ExportedProgram,
        captured: Captured,
        graph: Graph,
        batches: Batches,
        calibration: Calibration,
        *,
        budget: Budget | None,
        machine: Machine | None,
        lengths: Sequence[int],
        sizes: Callable[[int], Mapping[str, int]],
        here: bool,
        grids: Mapping[str, str],
        say: Say,
    ):
        self.model, self.captured, self.graph, self.batches = model, captured, graph, batches
        self.calibration, self.budget, self.machine, self.say = calibration, budget, machine, say
        self.lengths, self.sizes, self.grids = tuple(lengths), sizes, grids
        self.here = here
        self.sites = {i: s for i, s in enumerate(find_sites(graph)) if s.op.name == "attention"}
        self.rows = rows_of(captured, graph)
        self.exact = self.put({})
        self.store = Store(calibration.folder, self._key())
        self.weights: dict[str, dict[str, Tensor]] = {}
        self._own = frozenset(graph.ops())
        self._tapped: tuple[Recipe, Taps] | None = None
        self._timed = budget is not None and budget.prefer == "time"

    def _key(self) -> str:
        """Of everything that results depend on."""
        made = hashlib.sha256()
        given = self.calibration
        about = (self.graph.digest(), self.batches.digest(), given.fit, given.train, given.loss, given.seed,
                 given.steps, sorted(self.grids.items()))  # fmt: skip
        made.update(repr(about).encode())
        for name in sorted(self.captured.tensors):
            x = self.captured.tensors[name].detach().cpu().contiguous()
            made.update(name.encode())
            made.update(x.flatten().view(torch.uint8).numpy().tobytes())
        return made.hexdigest()

    # ---- modules -----------------------------------------------------------------------------------

    def put(self, chosen: Mapping[int, Recipe], weights: Mapping[str, Tensor] = {}) -> OptimizedModule:
        """The model with recipes at some sites, by index."""
        graph = self.rewritten(chosen)
        needed = {name: x for name, x in weights.items() if name in graph.params}
        own = bool(graph.updates) or bool(needed.keys() & self.captured.tensors.keys())
        # what a call writes to, and what is given other values, must not be the user's own tensors
        return assembled(self.model, self.captured, graph, weights=needed, share_weights=not own)

    def rewritten(self, chosen: Mapping[int, Recipe]) -> Graph:
        """The graph with recipes at some sites, by index."""
        if not chosen:
            return self.graph
        globs = {exactly(self.sites[i].path, i): recipe for i, recipe in chosen.items()}
        return Pipeline(linearize.with_(recipes=globs, grids=self.grids), canonicalize).run(self.graph)[0]

    # ---- candidates --------------------------------------------------------------------------------

    def recipes(self) -> list[Recipe]:
        """The candidates, those that learn last. Raises RecipeError for an unknown name, CalibrationError
        for two spellings of a recipe that learns."""
        if self.calibration.recipes is not None:
            found = [recipe_named(name) for name in self.calibration.recipes]
        else:
            free = [r for r in RECIPES.values() if r.kind != "needs training" and not r.learns]
            found = free + [recipe_named(name) for name in LEARNING]
        if not self.batches.fit:
            found = [r for r in found if r.kind != "needs training" and not r.learns]
        learning = [r.name for r in found if r.learns]
        if len(set(learning)) < len(learning):
            raise CalibrationError(
                f"recipes {', '.join(map(str, found))}: of a recipe that learns one spelling can be a "
                "candidate, because its weights have one name; leave the others out"
            )
        return sorted(set(found), key=lambda r: (bool(r.learns), str(r)))

    def learn(self, recipe: Recipe) -> dict[str, Tensor]:
        """The weights that a recipe adds at every site where it fits, fitted as far as was asked."""
        if not self._taps(recipe).learned or self.calibration.fit == "none":
            return {}
        name = f"fit {recipe}"
        kept = self.store.tensors(name)
        if kept is None:
            self.say(f"fitting {recipe}")
            fitted = fit_layers(
                self.captured, self.graph, [(i, recipe) for i in self.sites], self.batches.fit,
                seed=self.calibration.seed, grids=self.grids, progress=self.say,
                steps=self.calibration.steps if self.calibration.fit in ("layers", "all") else 0,
                seconds=self.calibration.seconds,
            )  # fmt: skip
            self.store.keep_tensors(name, fitted.weights)
            kept = fitted.weights
        return kept

    def tuned(self, recipes: Mapping[int, Recipe], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights fitted end to end with these recipes in place, where that was asked for; by name."""
        given = self.calibration
        if given.fit != "all" or not recipes:
            return {}
        name = "tune " + ", ".join(f"{i} {recipe}" for i, recipe in recipes.items())
        kept = self.store.tensors(name)
        if kept is None:
            self.say(f"fitting {len(recipes)} sites end to end")
            limits = [] if self.budget is None else [n for n in self.budget.limits() if n in LOSSES]
            linear = self.rewritten(recipes)
            fitted = fit_end_to_end(
                self.captured, self.graph, linear, self.batches.fit, train=given.train, seed=given.seed,
                weights={n: x for n, x in weights.items() if n in linear.params}, steps=given.steps,
                loss=given.loss or next(iter(limits), LOSSES[0]), seconds=given.seconds, progress=self.say,
            )  # fmt: skip
            self.store.keep_tensors(name, fitted.weights)
            kept = fitted.weights
        return kept

    def screened(self, recipe: Recipe) -> dict[int, dict[str, float]]:
        """By site where a recipe fits, its local error and its first-order effect on the outputs."""
        name = f"screen {recipe}"
        kept = self.store.numbers(name)
        if kept is None:
            self.say(f"screening {recipe}")
            taps, order = self._taps(recipe), list(self.sites)
            looked, weights = self.batches.score[:LOOKED], self.weights[str(recipe)]
            local = local_errors(taps, looked, weights)
            first = first_order(taps, self._nudges, range(len(order)), looked, weights)
            kept = self.store.keep(
                name, {order[at]: {"local": local[at], "first": first[at]} for at in local}
            )
        return {int(i): found for i, found in kept.items()}

    def _taps(self, recipe: Recipe) -> Taps:
        """A recipe at every site; built once for all that is asked of it."""
        if self._tapped is None or self._tapped[0] != recipe:
            taps = Taps(self.captured, self.graph, [(i, recipe) for i in self.sites], self.grids)
            self._tapped = recipe, taps
        return self._tapped[1]

    @functools.cached_property
    def _nudges(self) -> Nudges:
        return Nudges(self.captured, self.graph, [site.op for site in self.sites.values()])

    def effect(self, i: int, recipe: Recipe) -> dict[str, float]:
        """Errors of the outputs with a recipe at one site alone, on the batches that score."""
        metric = self.budget and self.budget.metric
        name = f"effect {i} {recipe}" + ("" if metric is None else " with metric")
        kept = self.store.numbers(name)
        if kept is None:
            self.say(f"scoring {recipe} at {self.sites[i].path}")
            fast = self.put({i: recipe}, self.weights[str(recipe)])
            kept = self.store.keep(name, self.errors(fast))
        return kept

    def errors(self, fast: nn.Module) -> dict[str, float]:
        """Errors of a module's outputs on the batches that score, and of the metric if there is one."""
        found = errors_of(self.exact, fast, self.batches.score, self.rows).errors()
        return found | self.dropped(fast)

    def dropped(self, fast: nn.Module) -> dict[str, float]:
        """What the budget's metric lost, if it has one."""
        if self.budget is None or self.budget.metric is None:
            return {}
        return {"drop": drop(self._before, measured(self.budget, fast))}

    @functools.cached_property
    def _before(self) -> float:
        assert self.budget is not None
        return measured(self.budget, self.exact)

    # ---- times -------------------------------------------------------------------------------------

    def priced(self, i: int, made: Value | None, tokens: int) -> tuple[float, float]:
        """Predicted seconds of a site at a length, and bytes it needs at once; made: what stands there
        instead of attention."""
        assert self.machine is not None
        roof = Roofline(self.machine, self.sizes(tokens))
        ops = [self.sites[i].op] if made is None else added(made, self._own)
        took = sum(part.seconds for op in ops for part in roof.op(op))
        return took, float(sum(roof.bytes(type) for op in ops if not op.defn.view for type in op.types))

    def crossover(self, i: int, recipe: Recipe) -> int | None:
        """Tokens from which a recipe is faster than attention at a site; None: never, 0: not known.

        Measured where the plan is for this machine, else predicted.
        """
        assert self.machine is not None
        try:
            return crossover(self.sites[i].op, recipe, self.machine, measured=self.here)
        except RecipeError:  # it reads what stands around the site, which cannot be timed alone
            return 0

    # ---- what a plan chooses from ------------------------------------------------------------------

    def site_plans(self) -> tuple[SitePlan, ...]:
        """Every site with its options, exact first, and why the other recipes are none."""
        refused: dict[int, dict[str, str]] = {i: {} for i in self.sites}
        found: dict[int, list[tuple[float, Recipe, Option]]] = {i: [] for i in self.sites}
        for recipe in self.recipes():
            taps, here = self._taps(recipe), {}
            for at, i in enumerate(self.sites):
                why = taps.refused.get(at) or self._useless(i, recipe, taps.made[at])
                if why:
                    refused[i][str(recipe)] = why
                else:
                    here[i] = taps.made[at]
            if not here:
                continue
            self.weights[str(recipe)] = self.learn(recipe)
            told = self.screened(recipe)
            for i, made in here.items():
                if math.isfinite(told[i]["local"]):
                    option = self._option(i, recipe, made, told[i]["local"])
                    found[i].append((told[i]["first"], recipe, option))
                else:
                    refused[i][str(recipe)] = "its result is not finite on the calibration batches"
        return tuple(self._site_plan(i, found[i], refused[i]) for i in self.sites)

    def _useless(self, i: int, recipe: Recipe, made: Value) -> str | None:
        """Why a recipe need not be looked at: nothing would be gained by it."""
        if not self._timed:
            exponent = price(recipe).exponent
            return None if exponent < LINEAR else f"its FLOPs grow with the power {exponent:.2f} of tokens"
        took = {n: (self.priced(i, made, n)[0], self.priced(i, None, n)[0]) for n in self.lengths}
        if any(own < exact for own, exact in took.values()):
            return None
        assert self.machine is not None
        n, (own, exact) = max(took.items())
        return (
            f"not faster than exact attention on {self.machine.name}: predicted {own * 1e3:.3g} ms instead "
            f"of {exact * 1e3:.3g} ms at {n} tokens"
        )

    def _site_plan(
        self, i: int, found: list[tuple[float, Recipe, Option]], refused: dict[str, str]
    ) -> SitePlan:
        exact = Option("exact", 0.0, {}, *self._by_length(i, None))
        found.sort(key=lambda entry: entry[0])
        for first, recipe, _ in found[MOST:]:
            refused[str(recipe)] = f"{MOST} others do less harm to first order (this: {first:.3g})"
        scored = [
            replace(option, errors=self.effect(i, recipe), crossover=self.crossover(i, recipe))
            for _, recipe, option in found[:MOST]
        ]
        site = self.sites[i]
        return SitePlan(site.path, i, site.mask, (exact, *scored), 0, "", refused)

    def given(self, recipes: Mapping[str, Recipe]) -> tuple[SitePlan, ...]:
        """Every site with exact attention and the recipe that a glob gives it, which is the choice."""
        wanted: dict[int, Recipe] = {}
        for i, site in self.sites.items():
            fit = (recipe for glob, recipe in recipes.items() if lies(site.path, i, glob))
            if (recipe := next(fit, None)) is not None:
                wanted[i] = recipe
        for recipe in dict.fromkeys(wanted.values()):
            self.weights[str(recipe)] = self.learn(recipe)
        plans = []
        for i, site in self.sites.items():
            exact = Option("exact", 0.0, {}, *self._by_length(i, None))
            found, refused, recipe = [exact], {}, wanted.get(i)
            if recipe is not None:
                taps = Taps(self.captured, self.graph, [(i, recipe)], self.grids)
                if 0 in taps.refused:
                    refused[str(recipe)] = taps.refused[0]
                else:
                    local = local_errors(taps, self.batches.score, self.weights[str(recipe)])[0]
                    found.append(self._option(i, recipe, taps.made[0], local))
            plans.append(SitePlan(site.path, i, site.mask, tuple(found), len(found) - 1, "given", refused))
        return tuple(plans)

    def _option(self, i: int, recipe: Recipe, made: Value, local: float) -> Option:
        names = tuple(n for n in self.weights[str(recipe)] if n in reached(made, self._own))
        return Option(str(recipe), local, {}, *self._by_length(i, made), None, names)

    def _by_length(self, i: int, made: Value | None) -> tuple[dict[int, float], dict[int, float]]:
        prices = {n: self.priced(i, made, n) for n in self.lengths}
        return {n: p[0] for n, p in prices.items()}, {n: p[1] for n, p in prices.items()}


def exactly(path: str, index: int) -> str:
    """The glob of one site."""
    return re.sub(r"([*?[])", r"[\1]", path) + f"#{index}"


def added(made: Value, own: frozenset[Op]) -> list[Op]:
    """The ops that a value needs beyond those there are already, operands first."""
    seen: dict[Op, None] = {}
    stack: list[tuple[Op, bool]] = [(made.op, False)]
    while stack:
        op, done = stack.pop()
        if done:
            seen[op] = None
        elif op not in seen and op not in own:
            stack.append((op, True))
            stack += [(v.op, False) for v in op.operands]
    return list(seen)


def reached(made: Value, own: frozenset[Op]) -> set[str]:
    """Names of the weights that a value reads beyond those of the model."""
    return {op.attrs["name"] for op in added(made, own) if op.name == "param"}


def measured(budget: Budget, module: nn.Module) -> float:
    """The budget's metric of a module. Raises CalibrationError where it fails."""
    assert budget.metric is not None
    try:
        with torch.no_grad():
            return float(budget.metric(module))
    except Exception as error:
        name = getattr(budget.metric, "__name__", "metric")
        raise CalibrationError(
            f"the metric {name} raised {type(error).__name__}: {error}\n    it is called with a module that "
            "takes the arguments of the model, and returns a float"
        ) from error
