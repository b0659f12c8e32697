"""What holds for every recipe: it is its paper's formula, it is linear, padding is neutral, it learns.

Nothing here names a recipe: a new one is tested by its restatement under tests/restatements/.
"""

import math

import numpy as np
import pytest
import torch
from restatements import RESTATED, Restatement, Site
from torch import nn

from subquad.backends import backend
from subquad.ir import OPS, Graph, RecipeError, TensorType, building, cost, evaluate, parse, symbol
from subquad.ir.dims import evaluate as evaluate_dim
from subquad.ir.types import bool_, f32
from subquad.learned import initial
from subquad.passes import RECIPES, recipe_named
from subquad.passes.pipeline import difference
from subquad.passes.recipes import Mixing

SIZES = {"b": 2, "h": 4, "g": 2, "d": 4, "e": 5, "c": 6}
SCALE, INDEX, COUNT = 0.4, 1, 3
BIG = (1 << 16, 1 << 20)


def site_graph(spec: str, mask: str = "none", *, n=None, b=None, m=None, grid=(), before=0, **sizes) -> Graph:
    """A recipe alone, on inputs q, k, v, then the tokens if it needs them, then the mask if any."""
    recipe, size = recipe_named(spec), {**SIZES, **sizes}
    n = symbol("n") if n is None else n
    b, m = symbol("b") if b is None else b, n if m is None else m
    types = {
        "q": TensorType(f32, (b, size["h"], n, size["d"])),
        "k": TensorType(f32, (b, size["g"], m, size["d"])),
        "v": TensorType(f32, (b, size["g"], m, size["e"])),
    }
    if "tokens" in recipe.needs:
        types["tokens"] = TensorType(f32, (b, n, size["c"]))
    if "padding" in mask:
        types["mask"] = TensorType(bool_, (b, 1, 1, m))
    with building():
        inputs = {name: OPS["input"](name=name, type=t) for name, t in types.items()}
        place = Mixing(
            SCALE, "causal" in mask, inputs.get("mask"), "layer", INDEX, COUNT, inputs.get("tokens"),
            grid if "grid" in recipe.needs else (), before,
        )  # fmt: skip
        out = recipe(inputs["q"], inputs["k"], inputs["v"], place)
        return Graph("site", tuple(inputs.values()), (out,))


def weights(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """What it learns, moved a little from where it starts."""
    rng, found = np.random.default_rng(seed), {}
    for name, tensor in initial(graph, {}).items():
        array = tensor.detach().double().numpy()
        noise = 0.1 * rng.standard_normal(array.shape) if tensor.is_floating_point() else 0
        found[name] = array + noise
    return found


def arrays(case: Restatement, graph: Graph, n: int, mask: str, seed: int = 0) -> list[np.ndarray]:
    """Inputs; a third of the keys of the second sequence is padding, and padded keys hold poison."""
    rng, size = np.random.default_rng(seed), {**SIZES, **case.sizes}
    given = [
        rng.standard_normal([evaluate_dim(d, {"n": n, "b": size["b"]}) for d in x.shape])
        for x in graph.inputs
    ]
    if "padding" in mask:
        keep = rng.random((size["b"], n)) > 0.3
        keep[0], keep[1, -1] = True, n == 1
        given[1] = np.where(keep[:, None, :, None], given[1], 1e30)
        given[2] = np.where(keep[:, None, :, None], given[2], np.nan)
        given[-1] = keep[:, None, None, :]
    return given


def restated(case: Restatement, graph: Graph, given, learned, mask, grid=(), before=0) -> np.ndarray:
    """The same by the restatement."""
    by_name = dict(zip((x.op.attrs["name"] for x in graph.inputs), given, strict=True))
    q, k, v = (by_name[name] for name in "qkv")
    each, keep = q.shape[1] // k.shape[1], np.ones((len(k), k.shape[2]), bool)
    if "mask" in by_name:
        keep = by_name["mask"][:, 0, 0]
        k, v = (np.where(keep[:, None, :, None], x, 0.0) for x in (k, v))
    site = Site(
        q, np.repeat(k, each, 1), np.repeat(v, each, 1), keep, "causal" in mask, SCALE,
        {name.removeprefix("layer."): x for name, x in learned.items()},
        by_name.get("tokens"), grid, before, INDEX, COUNT,
    )  # fmt: skip
    with np.errstate(all="ignore"):
        return case.function(site, **case.options)


def places(case: Restatement):
    """(n, grid, before) at which a recipe is tried."""
    if "grid" in recipe_named(case.spec).needs:
        for grid in case.grids:
            for before in case.before:
                yield math.prod(grid) + before, grid, before
    else:
        for n in case.lengths:
            yield n, (), 0


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
    shared = None
    for n, grid, before in places(case):
        graph = shared
        if graph is None:
            fixed = {"n": n, "grid": grid, "before": before} if grid else {}
            graph = site_graph(case.spec, mask, **fixed, **case.sizes)
            shared = None if grid else graph
        given, learned = arrays(case, graph, n, mask), weights(graph)
        (actual,), _ = evaluate(graph, given, learned)
        expected = restated(case, graph, given, learned, mask, grid, before)
        assert np.isfinite(expected).all()
        assert difference([expected], [actual]) < 1e-10, (n, grid, before)


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
    flops = []
    for n in BIG:
        if "grid" in recipe_named(case.spec).needs:
            side = math.isqrt(n)
            grid = (side, side) if len(case.grids[0]) == 2 else (16, side // 4, side // 4)
            graph = site_graph(case.spec, n=side * side, grid=grid, b=1, **case.sizes)
        else:
            graph = site_graph(case.spec, b=1, **case.sizes)
        flops.append(evaluate_dim(cost(graph).flops, {"n": n}))
    exponent = math.log(flops[1] / flops[0]) / math.log(BIG[1] / BIG[0])
    assert (abs(exponent - 1) < 0.01) == case.linear, exponent


@pytest.mark.parametrize("case", EACH)
def test_it_learns(case):
    """In torch: the oracle's numbers, and a finite gradient that is not 0 for every weight it learns."""
    n, grid, before = list(places(case))[-1]
    fixed = {"grid": grid, "before": before} if grid else {}
    size = {**SIZES, **case.sizes}
    graph = site_graph(case.spec, n=n, b=size["b"], **fixed, **case.sizes)
    given, learned = arrays(case, graph, n, "none"), weights(graph)
    (expected,), _ = evaluate(graph, given, learned)
    kinds = graph.params
    tensors = {
        name: torch.tensor(x, dtype=torch.float32 if kinds[name].dtype.is_float else torch.int64)
        for name, x in learned.items()
    }
    for x in tensors.values():
        x.requires_grad_(x.is_floating_point())
    inputs = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in given]
    (out,), _ = backend("eager").compile(graph)(inputs, tensors)
    bound = 1e-4 * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(out.detach().numpy(), expected, atol=bound)
    (out * torch.randn_like(out)).sum().backward()
    recipe = recipe_named(case.spec)
    trained = {n for n, x in initial(graph, {}).items() if isinstance(x, nn.Parameter)}
    assert {name.removeprefix("layer.") for name in trained} == set(recipe.learns), "say what it learns"
    for name in trained:
        grad = tensors[name].grad
        assert grad is not None and grad.isfinite().all() and grad.abs().max() > 0, name


@pytest.mark.parametrize("case", EACH)
def test_it_refuses_what_it_cannot_honour(case):
    """Other masks, other lengths, a missing grid or missing tokens; each with a reason."""
    recipe = recipe_named(case.spec)
    assert recipe.refusal("dense", False, True, "because") is not None
    for mask in {"none", "causal", "padding", "causal+padding"} - recipe.masks:
        assert recipe.name in (recipe.refusal(mask, "causal" in mask, True, "") or "")
    if recipe.square:
        assert recipe.refusal("none", False, False, "") is not None
    if recipe.needs:
        with building(), pytest.raises(RecipeError, match="it needs"):
            q = OPS["input"](name="q", type=TensorType(f32, (1, 2, 4, 4)))
            recipe(q, q, q, Mixing(1.0, False))


@pytest.mark.parametrize("case", EACH)
def test_its_graph_is_text(case):
    """What it builds prints, and parses back to the same."""
    n, grid, before = list(places(case))[-1]
    fixed = {"n": n, "grid": grid, "before": before} if grid else {}
    graph = site_graph(case.spec, **fixed, **case.sizes)
    assert str(parse(str(graph))) == str(graph)
