"""What a plan says of its choices: why each site is what it is, what would come next, the table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from .budget import additive, figure, said, total
from .tables import error, grid
from .verdicts import collapsed

if TYPE_CHECKING:
    from .plan import Option, Plan


def reason(plan: Plan, at: int, usable: Sequence[bool]) -> str:
    """Why a site is what it is, in the plan as chosen. usable: which options could be chosen."""
    site, limits = plan.sites[at], _limits(plan)
    if not site.chosen.exact:
        shares = {n: site.chosen.damage(n) / (additive(n, most) or 1.0) for n, most in limits.items()}
        name = max(shares, key=lambda n: shares[n], default=None)
        return f"{shares[name]:.0%} of budget" if name else ""
    if len(site.options) == 1:
        why = list(dict.fromkeys(site.refused.values()))
        return why[0] if len(why) == 1 else f"{len(site.refused)} recipes refused" if why else "no candidate"
    if not any(usable[1:]):
        return f"nothing is faster at {', '.join(map(str, plan.lengths))} tokens, or it needs too much memory"
    allowed = [j for j in range(1, len(site.options)) if usable[j]]
    nearest = min(allowed, key=lambda j: _least(plan, site.options[j]))
    errors = plan.errors(_swapped(plan, at, nearest))
    over = [name for name, most in limits.items() if not errors.get(name, 0.0) <= most]
    recipe = site.options[nearest].recipe
    if over:
        return f"{recipe} would make it {figure(over[0], errors[over[0]])}"
    return f"{recipe} would gain nothing" if limits else f"fast enough without {recipe}"


def runners_up(plan: Plan) -> list[Option | None]:
    """What would come next at each site, the other sites as they are: the fastest of what keeps the budget,
    else what damages least; None where there is one option."""
    limits, costs, damages = _limits(plan), plan.costs(), plan.damages()
    least = next(iter(damages), None)

    def rank(at: int, j: int, others: Mapping[str, float]) -> tuple[bool, float]:
        sums = {name: others[name] + damages[name][at][j] for name in others}
        if all(total(name, sums.get(name, 0.0)) <= most for name, most in limits.items()):
            return False, costs[at][j]
        damage = damages[least][at][j] if least else 0.0
        return True, math.inf if math.isnan(damage) else damage

    found: list[Option | None] = []
    for at, site in enumerate(plan.sites):
        others = {
            name: math.fsum(m[i][s.choice] for i, s in enumerate(plan.sites) if i != at)
            for name, m in damages.items()
        }
        rest = [j for j in range(len(site.options)) if j != site.choice]
        found.append(site.options[min(rest, key=lambda j: rank(at, j, others))] if rest else None)
    return found


def _limits(plan: Plan) -> Mapping[str, float]:
    return {} if plan.budget is None else plan.budget.limits()


def _swapped(plan: Plan, at: int, option: int) -> list[int]:
    return [option if i == at else site.choice for i, site in enumerate(plan.sites)]


def _least(plan: Plan, option: Option) -> float:
    """The damage by which options are compared: that of the first error measured."""
    names = plan.error_names()
    damage = option.damage(names[0]) if names else 0.0
    return math.inf if math.isnan(damage) else damage


def told(plan: Plan) -> Iterator[RenderableType]:
    """The table, like sites in one row, and what is predicted, promised and measured."""
    name = next(iter(plan.error_names()), None)
    longest = max(plan.lengths, default=0)
    rows: dict[tuple[str, ...], list[str]] = {}
    for site, after in zip(plan.sites, runners_up(plan)):
        chosen = site.chosen
        ran = plan.ran(site, chosen, longest).seconds.get(longest)
        faster = f"{site.options[0].seconds[longest] / ran:.3g}" if ran else "-"
        damage = 0.0 if chosen.exact else chosen.errors.get(name or "")
        cells: tuple[str, ...] = (
            site.mask, chosen.recipe, error(chosen.local), error(damage), faster,
            "-" if after is None else after.recipe, site.reason or "-",
        )  # fmt: skip
        rows.setdefault(cells, []).append(site.place)
    damages = f"{said(name)}>" if name else "damage>"
    table = grid("where", "mask", "choice", "local>", damages, "x faster>", "runner-up", "why")
    for at in (0, 2, 6):  # names are read whole
        table.columns[at].no_wrap = True
    for cells, places in rows.items():
        table.add_row(", ".join(collapsed(places)), *cells)
    yield table
    linear = sum(not site.chosen.exact for site in plan.sites)
    yield Text(f"\n{linear} of {len(plan.sites)} attentions linear, {plan.budget or 'no budget'}")
    times = ", ".join(f"{plan.speedup(n):.3g} at {n}" for n in plan.lengths)
    where = f" on {plan.machine}" if plan.machine else ""
    yield Text(f"predicted times faster, whole model{where}, by tokens: {times or '-'}")
    yield Text(f"predicted errors: {_list(plan.errors())}")
    if plan.promised is None:
        yield Text("promised: nothing, this choice was not verified")
    else:
        yield Text(f"promised (bounds on batches that nothing else saw): {_list(plan.promised)}")
    if plan.measured is not None:
        yield Text(f"measured on them: {_list(plan.measured)}")
    if plan.note:
        yield Text(plan.note)


def _list(errors: Mapping[str, float]) -> str:
    return ", ".join(figure(name, value) for name, value in errors.items()) or "none"
