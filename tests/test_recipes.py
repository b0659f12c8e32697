"""Recipes against their formulas, restated token by token; what they refuse; what they cost."""

import sys

import numpy as np
import pytest
import torch
from restatements.window import row

import subquad
from subquad.ir import (
    OPS,
    Graph,
    RecipeError,
    TensorType,
    building,
    cost,
    evaluate,
    parse,
    symbol,
)
from subquad.ir.dims import evaluate as evaluate_dim
from subquad.ir.ops.attention import attention
from subquad.ir.ops.linear_attention import linear_attention
from subquad.ir.ops.random import randn
from subquad.ir.ops.shape import expand
from subquad.ir.types import bool_, f32
from subquad.passes import RECIPES, Pipeline, compare_costs, find_sites, linearize, recipe, recipe_named
from subquad.passes.pipeline import difference

B, N = symbol("b"), symbol("n")
SIZE = 8
LENGTHS = (1, 3, SIZE - 1, SIZE, SIZE + 1, 257)


def site_graph(recipe, *, causal=False, padded=False, h=4, g=2, d=4, e=5, n=N, b=B, m=None):
    """One attention replaced by `recipe`, as a graph of q, k, v and perhaps a padding mask."""
    m = n if m is None else m
    shapes = ((b, h, n, d), (b, g, m, d), (b, g, m, e))
    types = [TensorType(f32, shape) for shape in shapes]
    types += [TensorType(bool_, (b, 1, 1, m))] if padded else []
    with building():
        inputs = [OPS["input"](name=name, type=t) for name, t in zip("qkvm", types, strict=False)]
        graph = Graph("site", inputs, [attention(*inputs, scale=0.4, causal=causal)])
        return graph if recipe is None else linearize(graph, recipes={"*": recipe})


def data(n, *, padded, h=4, g=2, d=4, e=5, b=2, seed=0):
    """Operands; of the keys of the second sequence a third is padding, and the last is."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal(s) for s in ((b, h, n, d), (b, g, n, d), (b, g, n, e)))
    if not padded:
        return [q, k, v], np.ones((b, n), bool)
    keep = rng.random((b, n)) > 0.3
    keep[0], keep[1, -1] = True, n == 1
    k, v = np.where(keep[:, None, :, None], k, 1e30), np.where(keep[:, None, :, None], v, np.nan)
    return [q, k, v, keep[:, None, None]], keep


def by_token(formula, operands, keep, causal, scale=0.4):
    """`formula(q_i, keys, values, positions, i)` for every query over the keys it may see."""
    q, k, v = operands[:3]
    each = q.shape[1] // k.shape[1]
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b, h, i in np.ndindex(*q.shape[:3]):
        seen = np.flatnonzero(keep[b] & ((np.arange(k.shape[2]) <= i) | (not causal)))
        keys, values = k[b, h // each, seen], v[b, h // each, seen]
        out[b, h, i] = formula(q[b, h, i], keys, values, seen, i, scale)
    return out


def elu1(q, k, v, seen, i, scale):
    def phi(x):
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

    w = phi(k) @ phi(q)
    return w @ v / (w.sum() + 1e-6)


def taylor1(q, k, v, seen, i, scale):
    if not len(seen):
        return np.zeros(v.shape[1])
    w = (1 + scale * (k - k.mean(0)) @ q) / len(seen)
    return w @ v


def window(variance):
    def formula(q, k, v, seen, i, scale):
        return row(q * scale, k, v, seen, i, size=SIZE, variance=variance)

    return formula


FORMULAS = {
    "elu1": elu1,
    "taylor1": taylor1,
    f"window(size={SIZE},variance=true)": window(True),
    f"window(size={SIZE})": window(False),
}


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("recipe", FORMULAS)
def test_recipe_is_its_formula(recipe, causal, padded):
    """At lengths around the block, with grouped heads, and with poison in the padded keys."""
    graph = site_graph(recipe, causal=causal, padded=padded)
    assert "attention" not in {op.name for op in graph.ops()}
    for n in LENGTHS:
        operands, keep = data(n, padded=padded)
        expected = by_token(FORMULAS[recipe], operands, keep, causal)
        (actual,), _ = evaluate(graph, operands)
        assert difference([expected], [actual]) < 1e-10, n


@pytest.mark.parametrize("recipe", FORMULAS)
def test_static_shapes_and_one_head(recipe):
    """Concrete sizes take the same path as symbolic ones."""
    graph = site_graph(recipe, causal=True, h=2, g=2, b=1, n=SIZE + 3)
    operands, keep = data(SIZE + 3, padded=False, b=1, h=2, g=2)
    expected = by_token(FORMULAS[recipe], operands, keep, True)
    assert difference([expected], evaluate(graph, operands)[0]) < 1e-10
    assert str(parse(str(graph))) == str(graph)


@pytest.mark.parametrize("recipe", FORMULAS)
def test_causal_recipes_do_not_see_the_future(recipe):
    """Changing a later token changes no earlier output."""
    graph = site_graph(recipe, causal=True)
    operands, _ = data(3 * SIZE + 1, padded=False)
    (before,), _ = evaluate(graph, operands)
    t = 2 * SIZE + 3
    for x in operands:
        x[:, :, t] += 1
    (after,), _ = evaluate(graph, operands)
    np.testing.assert_allclose(after[:, :, :t], before[:, :, :t], atol=1e-12)
    assert np.abs(after[:, :, t] - before[:, :, t]).max() > 1e-3


def test_window_over_everything_is_softmax():
    """With a block as long as the sequence nothing is left for the tail."""
    for causal in (False, True):
        operands, _ = data(11, padded=True)
        exact = site_graph(None, causal=causal, padded=True)
        same = site_graph("window(size=16)", causal=causal, padded=True)
        operands[1:3] = [np.nan_to_num(x * (np.abs(x) < 1e9)) for x in operands[1:3]]
        (want,), _ = evaluate(exact, operands)
        assert difference([want], evaluate(same, operands)[0]) < 1e-12


def test_taylor1_is_the_first_order_of_softmax():
    """Its error against softmax falls with the square of the scale of the scores."""
    errors = []
    for factor in (1e-2, 1e-3):
        operands, _ = data(16, padded=False)
        operands[0] = operands[0] * factor
        (exact,), _ = evaluate(site_graph(None), operands)
        (approximate,), _ = evaluate(site_graph("taylor1"), operands)
        errors.append(np.abs(exact - approximate).max())
    assert 50 < errors[0] / errors[1] < 200


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("recipe", ["elu1", "taylor1", "window(size=64)"])
def test_cost_is_linear_in_tokens(recipe, causal):
    """Doubling the tokens doubles FLOPs and bytes; for exact attention FLOPs grow fourfold."""
    graph = site_graph(recipe, causal=causal)
    lengths = (1 << 14, 1 << 15)
    for what in ("flops", "bytes"):
        at = [evaluate_dim(getattr(cost(graph), what), {"b": 1, "n": n}) for n in lengths]
        assert at[1] / at[0] == pytest.approx(2, rel=0.01), what
    (op,) = [op for op in site_graph(None, causal=causal).ops() if op.name == "attention"]
    before, after = compare_costs(op, recipe_named(recipe))
    exact = [evaluate_dim(before.flops, {"b": 1, "n": n}) for n in lengths]
    assert exact[1] / exact[0] == pytest.approx(4, rel=0.01)
    assert evaluate_dim(after.flops, {"b": 1, "n": 1 << 14}) < exact[0]


# ---- asking for recipes --------------------------------------------------------------------------


def test_unknown_names_say_the_nearest():
    """Recipes, options and globs."""
    graph = site_graph(None)
    for recipes, words in (
        ({"*": "windov"}, "did you mean 'window'"),
        ({"*": "window(sise=3)"}, "did you mean 'size'"),
        ({"*": "window(size=big)"}, "an integer"),
        ({"*": 3}, "not a int"),
        ({"layers.*": "window"}, "no attention lies at 'layers.*'"),
    ):
        with pytest.raises(RecipeError, match=words.replace("*", r"\*")):
            linearize(graph, recipes=recipes)
    with pytest.raises(RecipeError) as caught:
        Pipeline.parse('canonicalize,linearize{recipes="*":windov}').run(graph)
    assert "passes already run: canonicalize" in caught.value.__notes__


@pytest.mark.parametrize("spec", ["elu1", "window(size=32)", "window(size=32,variance=true)"])
def test_recipe_text_round_trips(spec):
    """A recipe prints what `recipe_named` reads, also inside a pipeline."""
    assert str(recipe_named(spec)) == spec
    pipeline = Pipeline.parse(f'linearize{{recipes="*":"{spec}"}}')
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert recipe_named("window(size=64)") == RECIPES["window"]


def refusal(graph, recipe):
    """The one refusal of linearize on a graph it must leave alone."""
    after, (step,) = Pipeline.parse(f'linearize{{recipes="*":{recipe}}}').run(graph)
    assert after is graph
    (event,) = step.refused
    assert event.rule == f"linearize:{recipe}"
    (site,) = find_sites(after, (step,))
    assert site.decision == "attention" and site.reason == event.result.reason
    return event.result.reason


@pytest.mark.parametrize("recipe", ["elu1", "taylor1", "window"])
def test_what_cannot_be_proved_is_refused(recipe):
    """A dense mask, and causal attention across lengths."""
    q, kv = TensorType(f32, (B, 4, N, 8)), TensorType(f32, (B, 4, symbol("m"), 8))
    with building():
        inputs = [OPS["input"](name=x, type=t) for x, t in zip("qkv", (q, kv, kv), strict=True)]
        across = Graph("across", inputs, [attention(*inputs, scale=1.0, causal=True)])
        mask = OPS["input"](name="mask", type=TensorType(bool_, (B, 1, N, symbol("m"))))
        dense = Graph("dense", [*inputs, mask], [attention(*inputs, mask, scale=1.0)])
        bias = OPS["input"](name="bias", type=TensorType(f32, (B, 1, 1, symbol("m"))))
        biased = Graph("biased", [*inputs, bias], [attention(*inputs, bias, scale=1.0)])
    assert "as many queries as keys" in refusal(across, recipe)
    assert "depends on the query through input" in refusal(dense, recipe)
    assert "not proved to be 0 or -inf" in refusal(biased, recipe)


def test_cross_attention_without_causality():
    """elu1 and taylor1 need no equal lengths; window does."""
    for name, rule in (("elu1", elu1), ("taylor1", taylor1)):
        graph = site_graph(name, n=5, m=7, b=2)
        rng = np.random.default_rng(1)
        operands = [rng.standard_normal(s) for s in ((2, 4, 5, 4), (2, 2, 7, 4), (2, 2, 7, 5))]
        expected = by_token(rule, operands, np.ones((2, 7), bool), False)
        assert difference([expected], evaluate(graph, operands)[0]) < 1e-10
    assert "as many queries as keys" in refusal(site_graph(None, n=5, m=7), "window")


def test_a_recipe_that_cannot_be_declared():
    """Names, kinds and masks are checked where the recipe is written."""
    for fields in ({"kind": "magic", "masks": {"none"}}, {"kind": "exact", "masks": {"sliding"}}):
        with pytest.raises(RecipeError):
            recipe(paper="", **fields)(lambda q, k, v, site: q)
    with pytest.raises(RecipeError, match="twice"):
        recipe(paper="", kind="exact", masks={"none"})(RECIPES["elu1"].function)


# ---- where a site stands -------------------------------------------------------------------------


class Patches(torch.nn.Module):
    """A picture cut into patches by a convolution, a class token before them, one attention."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads = heads
        self.patch, self.qkv = torch.nn.Conv2d(3, width, 4, 4), torch.nn.Linear(width, 3 * width)
        self.cls = torch.nn.Parameter(torch.zeros(1, 1, width))
        self.block = torch.nn.Linear(width, width)

    def forward(self, picture):
        """[b, 3, H, W] to [b, n, width]."""
        x = self.patch(picture).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.block(x.transpose(1, 2).flatten(2))


def recipe_that_sees(seen, **needs):
    """A recipe that notes its site and learns a gate, and the list of recipes without it again."""

    @recipe(paper="", kind="needs training", masks={"none"}, learns={"gate": "zeros"}, **needs)
    def noted(q, k, v, site):
        "For this test."
        seen.append(site)
        gate = site.learn("gate", expand(OPS["const"](value=0.5, dtype=f32), size=(q.shape[1], 1, 1)))
        noise = site.fixed("noise", randn(size=(q.shape[3],), dtype=f32, key=1))
        return linear_attention(q * gate * noise, k, v, causal=False, normalize=False)

    return noted


@pytest.mark.parametrize("sizes", [(8, 12), (16, 8)])
def test_a_site_knows_its_grid_and_its_tokens(sizes, monkeypatch):
    """Both are read off the graph: the grid of the patches, the class token before it."""
    monkeypatch.setattr(sys.modules["subquad.passes.recipes.recipe"], "RECIPES", dict(RECIPES))
    seen = []
    noted = recipe_that_sees(seen, needs={"grid", "tokens"})
    model, picture = Patches().eval(), torch.randn(2, 3, *sizes)
    fast = subquad.optimize(model, (picture,), attention=noted)
    site = seen[-1]
    assert (site.grid, site.before) == (tuple(s // 4 for s in sizes), 1)
    assert site.tokens.shape == (2, sizes[0] * sizes[1] // 16 + 1, 16)
    assert (fast(picture) - model(picture)).abs().max() > 0


def test_what_a_recipe_learns_is_a_parameter(monkeypatch):
    """In state_dict and in the optimiser, the same start in every run; what is drawn is a buffer."""
    monkeypatch.setattr(sys.modules["subquad.passes.recipes.recipe"], "RECIPES", dict(RECIPES))
    noted = recipe_that_sees([])
    model, picture = Patches().eval(), torch.randn(2, 3, 8, 8)
    first, second = (subquad.optimize(model, (picture,), attention=noted) for _ in range(2))
    assert {"noted.gate", "noted.noise"} <= set(first.state_dict())
    assert "noted.gate" in dict(first.named_parameters()) and "noted.noise" in dict(first.named_buffers())
    assert torch.equal(first.state_dict()["noted.noise"], second.state_dict()["noted.noise"])
    first(picture).sum().backward()
    assert first.get_parameter("noted.gate").grad.abs().max() > 0
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(picture), second(picture))


def test_a_grid_that_cannot_be_is_refused():
    """One that holds more tokens than there are; one that is no grid."""
    model, picture = Patches().eval(), torch.randn(1, 3, 8, 8)
    with pytest.raises(RecipeError, match="5 tokens, which a grid of"):
        subquad.optimize(model, (picture,), attention="elu1", grid=(3, 3))
    with pytest.raises(RecipeError, match="one to three sizes"):
        subquad.optimize(model, (picture,), attention="elu1", grid=(0, 3))
