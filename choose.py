"""One option for each site: the least total cost whose total damages stay within limits.

The multiple-choice knapsack problem with several constraints, as an integer program solved to optimality
(HiGHS). Numbers in, positions out: nothing here knows what a site is. Source: Kellerer, Pferschy and
Pisinger, Knapsack Problems (2004), chapter 11.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .ir import PlanError

Matrix = Sequence[Sequence[float]]
"""A figure for each option of each site: [site][option]; sites may have unlike numbers of options."""

SLACK = 1e-9
"""By what share of itself a limit may be passed: what rounding does to a sum."""

NODES = 1000
"""Nodes of the branch-and-bound tree after which the best choice found is taken without a proof."""

CORE = 60
"""Options beyond one a site that are tried first, those of least reduced cost."""

POINTS = 32
"""Points of a frontier, at most."""

MERGED = 4096
"""Points of sites merged one by one, at most; above, only those on the convex hull are looked for."""


class InfeasibleError(PlanError):
    """No choice is within the limits. choice: the nearest one, which passes them by the least share of the
    limit (of the largest damage where it is 0); sums: its total damage by name."""

    choice: list[int]
    sums: dict[str, float]


@dataclass(frozen=True)
class Point:
    """A choice that no other beats in both: option by site, its total cost, its total damage."""

    choice: tuple[int, ...]
    cost: float
    damage: float


def choose(costs: Matrix, damages: Mapping[str, Matrix], limits: Mapping[str, float]) -> list[int]:
    """The option of each site, so that the sum of costs is least and every sum of damages[name] is at
    most limits[name]; damages without a limit only settle which of equal options is taken.

    Figures are of any sign; an option with an infinite or NaN figure is never chosen (a damage counts
    where it is limited). The least sum is proved to 1e-9 of the largest spread of costs at a site, unless
    that takes more than `NODES` nodes: then it is the best found. Deterministic.

    Raises InfeasibleError where no choice is within the limits, PlanError for a site without options
    and for a limit without damages.
    """
    problem = _Problem.of(costs, damages, limits)
    if problem is None:
        return []
    found = problem.solve()
    if found is None:
        raise problem.infeasible()
    return found


def sums(choice: Sequence[int], figures: Matrix) -> float:
    """The total of `figures` over a choice, correctly rounded."""
    return math.fsum(row[j] for row, j in zip(figures, choice, strict=True))


@dataclass(frozen=True)
class _Problem:
    """The options that can be chosen, side by side. site, option: where each comes from. cost: its own,
    scaled; damage: [limit, options], above the least of its site, as a share of what is left to spend."""

    costs: Matrix
    damages: Mapping[str, Matrix]
    limits: Mapping[str, float]
    site: np.ndarray
    option: np.ndarray
    cost: np.ndarray
    figures: np.ndarray  # [limit, options], unscaled

    @staticmethod
    def of(costs: Matrix, damages: Mapping[str, Matrix], limits: Mapping[str, float]) -> _Problem | None:
        for name in limits:
            if name not in damages:
                raise PlanError(
                    f"a limit on {name!r}, and no damages of that name: {', '.join(damages) or '-'}"
                )
        site, option, cost, figures = [], [], [], []
        for i, row in enumerate(costs):
            table = np.array([row, *(m[i] for m in damages.values())], dtype=float)
            counted = [0, *(1 + k for k, name in enumerate(damages) if name in limits)]
            usable = np.flatnonzero(np.isfinite(table[counted]).all(0))
            if not len(usable):
                raise PlanError(f"site {i} has no option with finite figures among {len(row)}")
            usable = usable[_undominated(np.nan_to_num(table[:, usable], nan=np.inf))]
            site += [i] * len(usable)
            option += usable.tolist()
            spread = table[0, usable] - table[0, usable].min()
            cost += spread.tolist()
            figures.append(table[1:][[k - 1 for k in counted[1:]]][:, usable])
        if not site:
            return None
        scaled = np.array(cost)
        scaled = scaled / (scaled.max() or 1.0) * 1e3  # HiGHS stops at gaps of 1e-6
        ordered = {name: limits[name] for name in damages if name in limits}
        return _Problem(costs, damages, ordered, np.array(site), np.array(option), scaled, np.hstack(figures))

    def solve(self) -> list[int] | None:
        least = np.zeros((len(self.limits), len(self.costs)))
        shares = np.zeros_like(self.figures)
        keep = np.ones(len(self.site), dtype=bool)
        for k, limit in enumerate(self.limits.values()):
            least[k] = [self.figures[k, self.site == i].min() for i in range(len(self.costs))]
            above = self.figures[k] - least[k, self.site]
            left = limit + SLACK * abs(limit) - math.fsum(least[k])
            if left < 0:
                return None
            keep &= above <= left  # also with nothing left: what adds nothing stays
            shares[k] = above / (left or 1.0)
        if len(np.unique(self.site[keep])) < len(self.costs):
            return None
        excluded: list[np.ndarray] = []
        for _ in range(20):
            found = self._least(shares, keep, excluded)
            if found is None:
                return None
            choice = self._choice(found)
            if self._within(choice):
                return choice
            excluded.append(found)  # within the solver's tolerance, not within the limit
        found = self._least(shares * (1 + 1e-5), keep, [])
        return None if found is None else self._choice(found)

    def _least(self, shares: np.ndarray, keep: np.ndarray, excluded: list[np.ndarray]) -> np.ndarray | None:
        """Which options (positions) cost least: first among few, then among all that could do better.

        An option whose reduced cost in the linear relaxation is above the gap is in no better choice.
        """
        bound, reduced = _relaxed(self.cost, shares, self.site, keep)
        if bound is None:
            return None
        order = np.sort(reduced[keep])
        core = keep & (reduced <= order[min(len(order) - 1, len(self.costs) + CORE)])
        found = _integer(self.cost, shares, self.site, core, excluded)
        gap = math.inf if found is None else float(self.cost[found].sum()) - bound
        better = keep & (reduced <= gap + 1e-6)
        if (better & ~core).any():
            again = _integer(self.cost, shares, self.site, better, excluded)
            if again is not None and (found is None or self.cost[again].sum() < self.cost[found].sum()):
                found = again
        return found

    def _choice(self, found: np.ndarray) -> list[int]:
        return [int(self.option[p]) for p in sorted(found, key=lambda p: self.site[p])]

    def _within(self, choice: Sequence[int]) -> bool:
        return all(
            sums(choice, self.damages[name]) <= limit + SLACK * abs(limit)
            for name, limit in self.limits.items()
        )

    def infeasible(self) -> InfeasibleError:
        """The error, with the choice that passes the limits by the least share of them."""
        n, k = len(self.site), len(self.limits)
        largest = {name: max(map(abs, _finite(self.damages[name])), default=0.0) for name in self.limits}
        scale = np.array([abs(limit) or largest[name] or 1.0 for name, limit in self.limits.items()])
        over = np.array(list(self.limits.values())) / scale
        objective, integral = np.r_[self.cost * 1e-9, 1.0], np.r_[np.ones(n), 0]
        rows = np.c_[self.figures / scale[:, None], -np.ones(k)]
        result = _milp(objective, integral, np.r_[np.ones(n), np.inf], rows, over, self.site)
        found = np.flatnonzero(result[:n] > 0.5) if result is not None else np.array([], dtype=int)
        error = InfeasibleError()
        error.choice = self._choice(found)
        error.sums = {name: sums(error.choice, m) for name, m in self.damages.items()} if error.choice else {}
        said = ", ".join(f"{name} {error.sums.get(name, math.nan):.4g}" for name in self.limits)
        asked = ", ".join(f"{name} at most {limit:.4g}" for name, limit in self.limits.items())
        error.args = (f"no choice of options has {asked}\n    the nearest has {said}",)
        return error


def _finite(figures: Matrix) -> list[float]:
    return [x for row in figures for x in row if math.isfinite(x)]


def _undominated(table: np.ndarray) -> np.ndarray:
    """Which columns [figure, option] no other column is at most in every figure; the first of equals."""
    most = (table[:, :, None] <= table[:, None, :]).all(0)  # [i, j]: i is nowhere above j
    first = np.triu(np.ones(most.shape, dtype=bool), 1)
    return np.asarray(~(most & (~most.T | first)).any(0))


def _relaxed(
    cost: np.ndarray, shares: np.ndarray, site: np.ndarray, keep: np.ndarray
) -> tuple[float | None, np.ndarray]:
    """The least cost where options may be mixed, and what taking an option adds to it at least."""
    from scipy.optimize import linprog

    reduced = np.full(len(cost), np.inf)
    if not len(shares):
        least = _by_site(np.minimum, cost, site, keep)
        return float(least.sum()), np.where(keep, cost - least[site], np.inf)
    one = _memberships(site[keep])
    result = linprog(
        cost[keep], A_ub=shares[:, keep], b_ub=np.ones(len(shares)), A_eq=one, b_eq=np.ones(one.shape[0]),
        bounds=(0, None), method="highs",
    )  # fmt: skip
    if result.status != 0:
        return None, reduced
    reduced = cost - result.ineqlin.marginals @ shares
    least = _by_site(np.minimum, reduced, site, keep)
    return float(result.fun), np.where(keep, reduced - least[site], np.inf)


def _integer(
    cost: np.ndarray, shares: np.ndarray, site: np.ndarray, keep: np.ndarray, excluded: list[np.ndarray]
) -> np.ndarray | None:
    """The positions of least cost among `keep` within the shares that are not an excluded choice."""
    where = np.flatnonzero(keep)
    cuts = [np.isin(where, gone).astype(float) for gone in excluded]
    rows = np.vstack([shares[:, where], *cuts])
    most = np.r_[np.ones(len(shares)), np.full(len(cuts), len(np.unique(site)) - 1.0)]
    ones = np.ones(len(where))
    result = _milp(cost[where], ones, ones, rows, most, site[where])
    return None if result is None else where[result > 0.5]


def _milp(
    objective: np.ndarray, integral: np.ndarray, upper: np.ndarray, rows: np.ndarray, most: np.ndarray,
    site: np.ndarray,
) -> np.ndarray | None:  # fmt: skip
    """x of least objective, one option of every site, rows @ x <= most; what follows the options is free."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, hstack

    one = _memberships(site)
    one = hstack([one, csr_array((one.shape[0], len(objective) - one.shape[1]))]).tocsr()
    lower = np.where(integral > 0, 0.0, -np.inf)
    constraints: list[Any] = [LinearConstraint(one, 1, 1)]
    if len(rows):
        constraints.append(LinearConstraint(rows, -np.inf, most))
    for limit in ({"node_limit": NODES}, {}):  # once more where the nodes gave out before a first choice
        result = milp(
            objective, integrality=integral, bounds=Bounds(lower, upper), constraints=constraints,
            options={"mip_rel_gap": 0, "presolve": False, **limit},
        )  # fmt: skip
        if result.x is not None or result.status != 1:
            break
    return result.x


def _memberships(site: np.ndarray) -> Any:
    """[sites, options]: 1 where an option is of a site."""
    from scipy.sparse import csr_array

    _, index = np.unique(site, return_inverse=True)
    return csr_array((np.ones(len(site)), (index, np.arange(len(site)))))


def _by_site(ufunc: np.ufunc, figures: np.ndarray, site: np.ndarray, keep: np.ndarray) -> np.ndarray:
    out = np.full(int(site.max()) + 1, np.inf)
    ufunc.at(out, site[keep], figures[keep])
    return out


# ---- all limits at once ------------------------------------------------------------------------------


def frontier(costs: Matrix, damages: Mapping[str, Matrix], name: str) -> list[Point]:
    """Choices that no other beats in both total cost and total damages[name], least damage first.

    All of them where merging the sites one by one keeps within `MERGED` points, else those on the lower
    convex hull (each the best of some limit, found by slopes); thinned to `POINTS`, both ends kept.
    """
    rows: list[list[tuple[float, float, int]]] = []
    for cost, damage in zip(costs, damages[name], strict=True):
        table = np.array([cost, damage], dtype=float)
        usable = np.flatnonzero(np.isfinite(table).all(0))
        usable = usable[_undominated(table[:, usable])]
        usable = usable[np.argsort(table[1, usable], kind="stable")]
        if not len(usable):
            raise PlanError(f"site {len(rows)} has no option with a finite cost and {name}")
        rows.append([(float(table[0, j]), float(table[1, j]), int(j)) for j in usable])
    choices = _merged(rows)
    if choices is None:
        choices = _supported(rows)
    points: list[Point] = []
    for c in choices:
        point = Point(tuple(c), sums(c, costs), sums(c, damages[name]))
        while points and point.cost <= points[-1].cost and point.damage <= points[-1].damage:
            points.pop()  # equal but for the rounding of sums
        if not points or point.cost < points[-1].cost:
            points.append(point)
    return _thinned(points)


def _merged(rows: list[list[tuple[float, float, int]]]) -> list[list[int]] | None:
    """Every choice on the frontier, or None where they are too many."""
    total = np.zeros((2, 1))
    back: list[tuple[np.ndarray, np.ndarray]] = []
    for row in rows:
        table = np.array([(c, d) for c, d, _ in row]).T
        both = (total[:, :, None] + table[:, None, :]).reshape(2, -1)
        order = np.lexsort((both[0], both[1]))
        lowest = np.minimum.accumulate(both[0, order])
        kept = order[np.r_[True, both[0, order][1:] < lowest[:-1]]]
        if len(kept) > MERGED:
            return None
        total = both[:, kept]
        back.append((kept // len(row), kept % len(row)))
    choices = []
    for at in range(total.shape[1]):
        choice = []
        for row, (before, option) in zip(reversed(rows), reversed(back)):
            choice.append(row[option[at]][2])
            at = int(before[at])
        choices.append(choice[::-1])
    return choices


def _supported(rows: list[list[tuple[float, float, int]]]) -> list[list[int]]:
    """The choices on the convex hull: of every site its own hull, steps taken in order of their slopes."""
    steps, choice = [], []
    for i, row in enumerate(rows):
        hull: list[tuple[float, float, int]] = []
        for point in row:
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
                hull.pop()
            hull.append(point)
        choice.append(hull[0][2])
        steps += [(_slope(a, b), i, n, b[2]) for n, (a, b) in enumerate(itertools.pairwise(hull))]
    choices = [choice]
    for _, i, _, option in sorted(steps):
        choice = [*choice[:i], option, *choice[i + 1 :]]
        choices.append(choice)
    return choices


def _slope(a: tuple[float, float, int], b: tuple[float, float, int]) -> float:
    return (b[0] - a[0]) / (b[1] - a[1])


def _thinned(points: list[Point]) -> list[Point]:
    if len(points) <= POINTS:
        return points
    costs = np.array([p.cost for p in points])
    wanted = np.linspace(costs[0], costs[-1], POINTS)
    kept = sorted({int(np.abs(costs - at).argmin()) for at in wanted} | {0, len(points) - 1})
    return [points[i] for i in kept]
