"""What holds for every recipe: it is its paper's formula, it is linear, padding is neutral, it learns.

Nothing here names a recipe: a new one is tested by its restatement under tests/restatements/, and what is
measured of it, tests/conformance.py, is a line of docs/conformance.md.
"""

import conformance
import numpy as np
import pytest
from conformance import arrays, error, exponent, gradients, last_place, refusals, site_graph, trained, weights
from restatements import RESTATED

from subquad.ir import evaluate, parse
from subquad.passes import RECIPES, recipe_named

CASES = [
    pytest.param(case, mask, id=f"{case.spec}-{mask}")
    for case in RESTATED.values()
    for mask in sorted(recipe_named(case.spec).masks)
]
EACH = [pytest.param(case, id=case.spec) for case in RESTATED.values()]


def test_every_recipe_is_restated():
    """A recipe without a second saying is not tested."""
    missing = set(RECIPES) - {recipe_named(spec).name for spec in RESTATED}
    assert not missing, f"write tests/restatements/ for {sorted(missing)}"


@pytest.mark.parametrize(("case", "mask"), CASES)
def test_it_is_its_formula(case, mask):
    """At lengths around the block, with grouped heads, with poison in padded keys."""
    assert error(case, mask) < 1e-10


@pytest.mark.parametrize(("case", "mask"), [c for c in CASES if "causal" in c.values[1]])
def test_it_does_not_see_the_future(case, mask):
    """Changing a later token changes no earlier output, and its own."""
    graph = site_graph(case.spec, mask, **case.sizes)
    given, learned, t, n = arrays(case, graph, 33, mask), weights(graph), 20, 33
    (before,), _ = evaluate(graph, given, learned)
    for x in given:
        axis = next(i for i in (2, 1, 3) if i < x.ndim and x.shape[i] == n)
        index = tuple(slice(None) if i != axis else slice(t, None) for i in range(x.ndim))
        if x.dtype != bool:
            x[index] = x[index] + 1
    (after,), _ = evaluate(graph, given, learned)
    np.testing.assert_allclose(after[:, :, :t], before[:, :, :t], atol=1e-12)
    assert np.nanmax(np.abs(after[:, :, t:] - before[:, :, t:])) > 1e-6


@pytest.mark.parametrize("case", EACH)
def test_its_cost_is_linear_in_tokens(case):
    """FLOPs by the symbolic cost, exponent 1 in the limit."""
    assert (abs(exponent(case.spec) - 1) < 0.01) == case.linear, exponent(case.spec)


@pytest.mark.parametrize("case", EACH)
def test_it_learns(case):
    """In torch: the oracle's numbers, and a finite gradient that is not 0 for every weight it learns."""
    out, expected, grads = gradients(case)
    np.testing.assert_allclose(out, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
    assert grads.keys() == trained(case) == set(recipe_named(case.spec).learns), "say what it learns"
    for name, grad in grads.items():
        assert grad is not None and grad.isfinite().all() and grad.abs().max() > 0, name


@pytest.mark.parametrize("case", EACH)
def test_it_refuses_what_it_cannot_honour(case):
    """Other masks and lengths, scores and sinks, a missing grid or missing tokens: a reason each."""
    said = refusals(case)
    assert len(said) == len(set(said)) and all(said)
    named = (recipe_named(case.spec).name, "a causal recipe needs", "it needs")
    assert all(any(name in words for name in named) for words in said)


@pytest.mark.parametrize("case", EACH)
def test_its_graph_is_text(case):
    """What it builds prints, and parses back to the same."""
    graph = site_graph(case.spec, **last_place(case), **case.sizes)
    assert str(parse(str(graph))) == str(graph)


def test_the_page_of_all_recipes_is_up_to_date():
    """Every recipe is on it, and what no run is needed for is as it is now."""
    page = conformance.written(conformance.PAGE.read_text("utf-8"))
    assert {row["recipe"].strip("`").partition("(")[0] for row in page} == set(RECIPES)
    now = [conformance.steady(spec) for spec in sorted(RESTATED)]
    assert [{name: row[name] for name in conformance.STEADY} for row in page] == [
        {name: row[name] for name in conformance.STEADY} for row in now
    ], "run python tests/conformance.py --out docs/conformance.md"
    for row, at in zip(page, now, strict=True):
        learned = at["gradients"]
        assert row["gradients"] == ("-" if learned == "0" else f"{learned} of {learned}")
        assert float(row["error"]) < 1e-10
