"""Plans: recipes scored at every site, chosen under a budget, verified, repaired; what runs when."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from .budget import Budget, additive, total
from .calibration import Batch, Batches, Calibration, read
from .frontend import Captured
from .frontend.versions import Guard, ladder
from .ir import Graph, PlanError
from .lengths import Lengths
from .machine import Machine, machine_named, this_machine
from .passes import Recipe, recipe_named
from .plan import Plan
from .roofline import Roofline
from .scoring import errors_of
from .search import Search

ATTEMPTS = 12
"""How often a choice that broke its budget is made again under a tighter one."""

UNSEEN = (
    "without calibration batches, errors are those of the example inputs alone, and what has to be fitted "
    "was not tried"
)


@dataclass(frozen=True)
class Ask:
    """What a plan is to be made for.

    recipes: by glob, where they are given and not chosen. budget: None where recipes are given.
    calibration: None for none: then the one example input is looked at, nothing is fitted. lengths: tokens
    that time counts at; those of the example if None. machine: None for this one.
    """

    recipes: Mapping[str, Recipe] | None = None
    budget: Budget | None = None
    calibration: Calibration | None = None
    lengths: Sequence[int] | None = None
    machine: Machine | str | None = None
    grids: Mapping[str, str] = field(default_factory=dict)


def planned(
    ask: Ask, model: nn.Module | ExportedProgram, captured: Captured, graph: Graph, example: Batch,
    sizes: Mapping[str, int], say: Callable[[str], None] = lambda text: None,
) -> Plan:  # fmt: skip
    """A plan for a captured model, verified: what it promises held on batches that nothing else looked at.

    graph: after the exact passes. example: a call; sizes: those of the open dims in it. Raises
    CalibrationError for batches that cannot be used, PlanError for lengths that cannot be.
    """
    where = Lengths.of(graph, sizes)
    wanted = where.checked(ask.lengths)
    if ask.calibration is None:
        batches, given = Batches((), (example,), (example,)), Calibration(())
    else:
        batches, given = read(ask.calibration, captured.signature), ask.calibration
    if ask.recipes is None and given.train != "recipes":
        raise PlanError(
            f"train={given.train!r} changes the model's own weights for one choice of recipes, and "
            'attention="auto" looks at many; name the recipes, attention={...}, with this calibration'
        )
    named = ask.machine
    machine = machine_named(named) if isinstance(named, str) else named
    if ask.recipes is not None:
        wanted = ()  # nothing is chosen by its time
    elif machine is None:
        machine = this_machine()
    search = Search(
        model, captured, graph, batches, given, budget=ask.budget, machine=machine, here=named is None,
        lengths=wanted, sizes=where.sizes, grids=ask.grids, say=say,
    )  # fmt: skip
    if ask.recipes is None:
        sites = search.site_plans()
    else:
        sites = search.given(ask.recipes)
    plan = Plan(
        sites=sites, budget=ask.budget, lengths=wanted, rest_seconds=rest(search),
        machine=machine.name if machine else "",
        tensors={name: x for found in search.weights.values() for name, x in found.items()},
    )  # fmt: skip
    if ask.budget is None:
        return looked_at(search, plan)[0]
    found = verified(search, plan, ask.budget)
    if ask.calibration is None:
        found = replace(found, note=f"{UNSEEN}{'; ' + found.note if found.note else ''}")
    return found


def rest(search: Search) -> dict[int, float]:
    """Predicted seconds of what is no attention, by length."""
    skipped = {site.op for site in search.sites.values()}
    found: dict[int, float] = {}
    if search.machine is None:
        return found
    for n in search.lengths:
        parts = Roofline(search.machine, search.sizes(n)).graph(search.graph)
        found[n] = sum(part.seconds for part in parts if part.op not in skipped)
    return found


def verified(search: Search, plan: Plan, budget: Budget) -> Plan:
    """The plan with a choice that keeps its budget on the batches that verify, and what it promises.

    Errors of sites do not quite add, so a choice may break its budget: then it is made again under limits
    that are tighter by what it was over. What keeps nothing is the original.
    """
    share, note = 1.0, ""
    for _ in range(ATTEMPTS):
        try:
            chosen = replace(plan.resolve(tightened(budget, share)), budget=budget)
        except PlanError as error:
            return replace(plan.revert("*"), note=str(error))
        if not any(site.choice for site in chosen.sites):
            break
        chosen, bounds = looked_at(search, chosen)
        broken = budget.holds(bounds)
        if not broken:
            return chosen
        note = f"no choice kept the budget where it was verified; the last had {broken[0]}"
        search.say(f"choosing again: {broken[0]}")
        if all(map(math.isinf, bounds.values())):
            note += "; one sample verified it, and a bound takes two or more: pass more batches"
            break
        limits = budget.limits().items()
        over = max(additive(n, bounds[n]) / max(additive(n, most), 1e-30) for n, most in limits)
        share *= min(0.8, 1 / over)
    zeros = dict.fromkeys(budget.limits(), 0.0)
    return replace(plan.revert("*"), promised=zeros, measured=zeros, note=note)


def looked_at(search: Search, plan: Plan) -> tuple[Plan, dict[str, float]]:
    """The plan with the errors of its choice on the batches that verify, and bounds of them."""
    recipes = {site.index: recipe_named(site.chosen.recipe) for site in plan.sites if site.choice}
    tensors = {**plan.tensors, **search.tuned(recipes, plan.tensors)}
    search.say(f"verifying {len(recipes)} of {len(plan.sites)} sites")
    fast = search.put(recipes, tensors)
    tally, dropped = errors_of(search.exact, fast, search.batches.verify, search.rows), search.dropped(fast)
    bounds = (tally.bounds() if search.batches.fit else tally.errors()) | dropped
    made = replace(plan, promised=bounds, measured=tally.errors() | dropped, tensors=tensors)
    return made, bounds


def tightened(budget: Budget, share: float) -> Budget:
    """The budget with a share of its errors, as they add over sites."""
    most = {n: total(n, share * additive(n, limit)) for n, limit in budget.limits().items()}
    fields: dict[str, Any] = {("max_drop" if n == "drop" else n): x for n, x in most.items()}
    if "cosine" in fields:
        fields["cosine"] = 1 - fields["cosine"]
    return replace(budget, **fields)


def by_length(
    plan: Plan, graph: Graph, sizes: Mapping[str, int]
) -> list[tuple[Guard | None, dict[str, str]]]:
    """The versions of a planned module: from what size on, and with what recipes by glob; the first runs
    from the start.

    A recipe runs from its crossover on, where the number of tokens is open and time is what was asked for.
    """
    where, chosen = Lengths.of(graph, sizes), plan.recipes()
    if not where.open or plan.budget is None or plan.budget.prefer != "time":
        return [(None, chosen)]
    starts = [site.chosen.crossover or 0 for site in plan.sites if site.choice]
    return [
        (Guard(str(where.dim), at) if at else None, {glob: chosen[glob] for glob in chosen if glob in globs})
        for at, globs in ladder(dict(zip(chosen, starts, strict=True)))
    ]
