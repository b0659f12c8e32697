"""One option for each site: against every choice there is, and on what no enumeration reaches."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subquad.choose import POINTS, SLACK, InfeasibleError, choose, frontier, sums
from subquad.ir import PlanError

FIGURES = st.one_of(st.floats(0, 10, width=16), st.sampled_from([0.0, 0.1, 0.2, 0.3]))


@st.composite
def problems(draw, least=0, most=3):
    """Costs and damages of up to four sites of up to four options, and limits, some at a sum exactly."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    names = "abc"[: draw(st.integers(least, most))]

    def figures():
        return [draw(st.lists(FIGURES, min_size=n, max_size=n)) for n in shape]

    costs, damages = figures(), {name: figures() for name in names}
    at = [draw(st.integers(0, n - 1)) for n in shape]
    exactly = draw(st.booleans())
    limits = {n: sums(at, m) if exactly else draw(st.floats(0, 20, width=16)) for n, m in damages.items()}
    return costs, damages, limits


def every(costs):
    """Every choice."""
    return itertools.product(*(range(len(row)) for row in costs))


def within(choice, damages, limits):
    """Whether a choice keeps the limits."""
    return all(sums(choice, damages[name]) <= limit * (1 + SLACK) for name, limit in limits.items())


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_choice_is_the_best_of_all(problem):
    costs, damages, limits = problem
    allowed = [sums(c, costs) for c in every(costs) if within(c, damages, limits)]
    if not allowed:
        with pytest.raises(InfeasibleError) as caught:
            choose(costs, damages, limits)
        over = [
            max((sums(c, damages[n]) - most) / (most or np.max(np.concatenate(damages[n])) or 1)
                for n, most in limits.items()) for c in every(costs)
        ]  # fmt: skip
        nearest = caught.value.choice
        assert caught.value.sums == {name: sums(nearest, m) for name, m in damages.items()}
        assert over[list(every(costs)).index(tuple(nearest))] == pytest.approx(min(over), abs=1e-5)
        return
    choice = choose(costs, damages, limits)
    assert within(choice, damages, limits)
    assert sums(choice, costs) == pytest.approx(min(allowed), rel=1e-8, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(problems(1, 1))
def test_the_frontier_is_what_no_choice_beats(problem):
    costs, damages, _ = problem
    points = frontier(costs, damages, "a")
    assert 1 <= len(points) <= POINTS
    assert all(p.cost > q.cost and p.damage < q.damage for p, q in itertools.pairwise(points))
    for p in points:
        assert (p.cost, p.damage) == (sums(p.choice, costs), sums(p.choice, damages["a"]))
    everything = [(sums(c, costs), sums(c, damages["a"])) for c in every(costs)]
    for cost, damage in everything:
        assert not any(cost < p.cost and damage <= p.damage * (1 - 1e-12) for p in points)
        if len(points) < POINTS:  # none was thinned out
            assert any(p.cost <= cost + 1e-9 and p.damage <= damage + 1e-9 for p in points)


def large(sites=100, options=20, names="ab"):
    """Costs and damages of a model of many layers: what is cheaper damages more, by chance; exact first."""
    draw = np.random.default_rng(0)
    costs = draw.random((sites, options))
    costs[:, 0] = 1
    base = (1 - costs) ** 2 * draw.random((sites, options))
    damages = {name: base * (1 + 0.3 * draw.random((sites, options))) for name in names}
    return costs, damages


def test_a_hundred_sites_of_twenty_options():
    """Within the limits, and so near to the relaxation that nothing better can be missing."""
    costs, damages = large()
    limits = {name: 0.05 * matrix.max(1).sum() for name, matrix in damages.items()}
    choice = choose(costs, damages, limits)
    assert within(choice, damages, limits)
    # any multipliers give a lower bound: these are near those of the relaxation
    bounds = [
        float((costs + a * damages["a"] + b * damages["b"]).min(1).sum() - a * limits["a"] - b * limits["b"])
        for a, b in itertools.product(np.linspace(0, 8, 33), repeat=2)
    ]
    assert max(bounds) <= sums(choice, costs) <= max(bounds) * 1.01
    assert choose(costs, damages, limits) == choice


def test_a_frontier_of_a_hundred_sites_is_supported():
    """Too many points to merge: each is the least cost at its damage."""
    costs, damages = large()
    points = frontier(costs, damages, "a")
    assert len(points) > POINTS // 2
    assert sums(points[-1].choice, costs) == pytest.approx(costs.min(1).sum())
    assert points[0].damage == 0 and points[0].choice == (0,) * 100
    for p in points[1:-1:7]:
        best = choose(costs, {"a": damages["a"]}, {"a": p.damage})
        assert sums(best, costs) == pytest.approx(p.cost, rel=1e-7)


def test_damages_without_a_limit_settle_what_is_equal():
    costs, damages = [[2.0, 1.0, 1.0]], {"seen": [[0.0, 0.1, 0.1]], "unseen": [[0.0, 5.0, 3.0]]}
    assert choose(costs, damages, {"seen": 1.0}) == [2]
    assert choose(costs, {"seen": damages["seen"]}, {"seen": 1.0}) == [1]


def test_a_limit_of_zero_leaves_what_does_nothing():
    costs, damages = [[3.0, 2.0, 1.0]] * 2, {"a": [[0.0, 0.0, 1e-12], [0.0, 1e-12, 1e-12]]}
    assert choose(costs, damages, {"a": 0.0}) == [1, 0]


def test_what_was_not_measured_is_not_chosen():
    costs, nan = [[2.0, 1.0], [2.0, 1.0]], math.nan
    assert choose(costs, {"a": [[0.0, nan], [0.0, 0.1]]}, {"a": 9.0}) == [0, 1]
    assert choose(costs, {"a": [[0.0, math.inf], [0.0, 0.1]]}, {"a": 9.0}) == [0, 1]
    assert choose([[2.0, math.inf]], {}, {}) == [0]
    with pytest.raises(PlanError, match="site 1 has no option with finite figures among 2"):
        choose(costs, {"a": [[0.0, 1.0], [nan, nan]]}, {"a": 9.0})
    with pytest.raises(PlanError, match="site 0 has no option with a finite cost and a"):
        frontier(costs, {"a": [[nan, nan], [0.0, 1.0]]}, "a")


def test_a_limit_names_damages():
    with pytest.raises(PlanError, match="a limit on 'kl', and no damages of that name: cosine"):
        choose([[1.0]], {"cosine": [[0.0]]}, {"kl": 1.0})


def test_no_sites_no_choice():
    assert choose([], {"a": []}, {"a": 1.0}) == []
    assert [p.choice for p in frontier([], {"a": []}, "a")] == [()]


def test_what_cannot_be_met_says_how_near_it_is():
    costs, damages = [[1.0, 2.0]] * 3, {"a": [[5.0, 2.0]] * 3, "b": [[0.0, 1.0]] * 3}
    with pytest.raises(
        InfeasibleError, match=r"a at most 5, b at most 9\n    the nearest has a 6, b 3"
    ) as caught:
        choose(costs, damages, {"a": 5.0, "b": 9.0})
    assert caught.value.choice == [1, 1, 1] and caught.value.sums == {"a": 6.0, "b": 3.0}
