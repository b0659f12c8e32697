"""`attention="auto"`: the budget is kept, the choice is told, and nothing that goes wrong is lost."""

import json
import math

import pytest
import torch
from test_scoring import Padded, batches
from torch import nn
from torch.nn import functional as F

import subquad
from subquad import search as searching
from subquad.auto import tightened
from subquad.budget import Budget
from subquad.calibration import Calibration
from subquad.ir import CalibrationError, PlanError, RecipeError
from subquad.machine import machine_named

RECIPES = ("window(size=2)", "hedgehog")
LOLCATS = ("lolcats", "lolcats(size=4)")


@pytest.fixture(scope="module")
def padded():
    torch.manual_seed(0)
    return Padded().eval()


def auto(
    model, given=None, *, folder=None, fit="none", recipes=RECIPES, budget=None, seed=0, steps=20, **options
):
    budget = budget or Budget(relative_error=0.2, prefer="linear")
    made = Calibration(given or batches(10), fit=fit, recipes=recipes, folder=folder, seed=seed, steps=steps)
    options = {"machine": "epyc", "calibration": made, **options}
    return subquad.optimize(model, batches(1)[0], attention="auto", budget=budget, **options)


def error(model, fast, given):
    with torch.no_grad():
        pairs = [(model(x, m)[m], fast(x, m)[m]) for x, m in given]
    off = sum(float((a - b).square().sum()) for a, b in pairs)
    return math.sqrt(off / sum(float(a.square().sum()) for a, _ in pairs))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Where results are kept, so that one search serves every budget."""
    return tmp_path_factory.mktemp("scored")


@pytest.fixture(scope="module")
def fitted(padded):
    """Every site linear, what learns fitted; and the model's weights before."""
    before = {name: x.clone() for name, x in padded.state_dict().items()}
    return auto(padded, fit="layers", budget=Budget(relative_error=0.9, prefer="linear")), before


@pytest.mark.parametrize("limit", [0.5, 0.1, 0.02, 1e-9])
def test_the_budget_is_kept_on_inputs_that_nothing_saw(padded, scored, limit):
    fast = auto(padded, folder=scored, budget=Budget(relative_error=limit, prefer="linear"))
    fresh = batches(40)[20:]
    assert error(padded, fast, fresh) <= limit + 1e-6
    assert fast.plan.promised["relative_error"] <= limit
    replaced = sum(site.choice > 0 for site in fast.plan.sites)
    assert replaced == (2 if limit == 0.5 else 0 if limit == 1e-9 else replaced)


@pytest.mark.slow
def test_equal_seeds_give_equal_plans(padded, fitted):
    first, again = fitted[0], auto(padded, fit="layers", budget=Budget(relative_error=0.9, prefer="linear"))
    assert str(first.plan) == str(again.plan)
    for name, x in first.plan.tensors.items():
        torch.testing.assert_close(x, again.plan.tensors[name], rtol=1e-5, atol=1e-6)


def test_a_killed_search_goes_on_where_it_was(padded, fitted, tmp_path, monkeypatch):
    budget = Budget(relative_error=0.9, prefer="linear")
    effect, calls = searching.Search.effect, []

    def killed(self, i, recipe):
        calls.append(i)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return effect(self, i, recipe)

    monkeypatch.setattr(searching.Search, "effect", killed)
    with pytest.raises(KeyboardInterrupt):
        auto(padded, fit="layers", folder=tmp_path, budget=budget)
    monkeypatch.setattr(searching.Search, "effect", effect)
    said = []
    resumed = auto(padded, fit="layers", folder=tmp_path, budget=budget, progress=said.append)
    assert str(resumed.plan) == str(fitted[0].plan)
    assert not any(text.startswith(("fitting", "screening")) for text in said)


def test_what_is_chosen_is_a_choice_by_name(padded, fitted):
    """The plan's module is the module of its recipes and weights."""
    fast, _ = fitted
    recipes = fast.plan.recipes()
    assert recipes
    named = subquad.optimize(padded, batches(1)[0], attention=recipes)
    named.load_state_dict(fast.state_dict())
    x, m = batches(3)[2]
    torch.testing.assert_close(fast(x, m)[m], named(x, m)[m])
    assert [site.decision for site in fast.sites] == [site.chosen.recipe for site in fast.plan.sites]


def test_a_plan_is_saved_and_applied_to_a_fresh_copy(padded, fitted, tmp_path):
    fast, _ = fitted
    fast.plan.save(tmp_path / "plan")
    fresh = Padded().eval()
    fresh.load_state_dict(padded.state_dict())
    again = subquad.Plan.load(tmp_path / "plan").apply(fresh, batches(1)[0])
    x, m = batches(3)[2]
    assert torch.equal(fast(x, m), again(x, m))
    back = fast.plan.revert("*").apply(fresh, batches(1)[0])
    torch.testing.assert_close(back(x, m)[m], padded(x, m)[m])


def test_resolve_for_another_budget(padded, scored):
    fast = auto(padded, folder=scored, budget=Budget(relative_error=1e-9, prefer="linear"))
    assert not fast.plan.recipes()
    looser = fast.plan.resolve(Budget(relative_error=0.9, prefer="linear"))
    assert len(looser.recipes()) == 2 and looser.promised is None


def test_the_model_and_its_weights_are_left_alone(padded, fitted):
    _, before = fitted
    assert all(torch.equal(x, before[name]) for name, x in padded.state_dict().items())
    assert all(p.grad is None for p in padded.parameters())


def test_a_metric_of_the_users_own(padded):
    given = batches(40)[30:]

    def score(module):
        with torch.no_grad():
            return (
                sum(float(F.cosine_similarity(module(x, m)[m], padded(x, m)[m], -1).mean()) for x, m in given)
                / 10
            )

    few = {"recipes": ["window(size=2)"]}
    fast = auto(padded, budget=Budget(metric=score, max_drop=0.05, prefer="linear"), **few)
    assert score(padded) - score(fast) <= 0.05
    assert "drop" in fast.plan.promised

    def broken(module):
        raise ZeroDivisionError("no samples")

    with pytest.raises(CalibrationError, match="the metric broken raised ZeroDivisionError: no samples"):
        auto(padded, budget=Budget(metric=broken, max_drop=0.05, prefer="linear"), **few)
    budget = Budget(metric=lambda module: math.nan, max_drop=0.05, prefer="linear")
    nothing = auto(padded, budget=budget, **few)
    assert not nothing.plan.recipes()


def test_time_asks_for_what_is_faster(padded):
    """Twelve tokens are too few for any recipe: everything stays exact, and why is said."""
    fast = auto(padded, budget=Budget(relative_error=0.9))
    assert not fast.plan.recipes()
    assert "not faster than exact attention" in next(iter(fast.plan.sites[0].refused.values()))


class Long(nn.Module):
    """One attention of 4 heads of 16 over x [1, n, 64]."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(64, 192)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(0.1 * q, k, v).transpose(1, 2).flatten(2)


def test_exact_below_the_crossover_and_linear_above():
    torch.manual_seed(0)
    model = Long().eval()
    given = [(torch.randn(1, 128, 64),) for _ in range(10)]
    fast = subquad.optimize(
        model, given[0], attention="auto", budget=Budget(relative_error=0.5), machine="epyc",
        calibration=Calibration(given, fit="none", recipes=["taylor1"]), lengths=[64, 16384],
        dynamic_shapes={"x": {1: torch.export.Dim("n", min=2, max=1 << 20)}},
    )  # fmt: skip
    (guard, above), (_, below) = fast.versions[-1], fast.versions[0]
    assert guard.least == fast.plan.sites[0].chosen.crossover
    assert any(op.name == "attention" for op in below.ops())
    assert not any(op.name == "attention" for op in above.ops())
    short = torch.randn(1, min(64, guard.least - 1), 64)
    torch.testing.assert_close(fast(short), model(short))
    long = torch.randn(1, guard.least, 64)
    assert not torch.allclose(fast(long), model(long), atol=1e-5)
    assert fast.plan.speedup(16384) > 1 and fast.plan.speedup(64) == 1


def test_one_sample_promises_nothing(padded):
    given = [(x[:1], m[:1]) for x, m in batches(4)]
    fast = subquad.optimize(
        padded, given[0], attention="auto", machine="epyc",
        budget=Budget(relative_error=0.9, prefer="linear"),
        calibration=Calibration(given, fit="none", recipes=["taylor1"]),
    )  # fmt: skip
    assert not fast.plan.recipes()
    assert "one sample" in fast.plan.note


@pytest.mark.slow
def test_by_name_with_calibration_is_fitted(padded):
    given = batches(10)
    plain, fitted = (
        subquad.optimize(
            padded, given[0], attention="lolcats(size=4)", calibration=Calibration(given, fit=fit, steps=12)
        )
        for fit in ("none", "layers")
    )
    for before, after in zip(plain.plan.sites, fitted.plan.sites, strict=True):
        assert after.chosen.local < before.chosen.local
    assert fitted.plan.measured["relative_error"] < plain.plan.measured["relative_error"]
    assert [site.decision for site in fitted.sites] == ["lolcats(size=4)"] * 2
    assert "lolcats" in str(fitted.plan) and fitted.plan.budget is None


@pytest.mark.slow
def test_the_models_own_weights_change_only_where_that_is_asked(padded):
    given = batches(10)
    before = {name: x.clone() for name, x in padded.state_dict().items()}
    fast = subquad.optimize(
        padded, given[0], attention="lolcats(size=4)",
        calibration=Calibration(given, fit="all", train="all", steps=12),
    )  # fmt: skip
    plain = subquad.optimize(
        padded, given[0], attention="lolcats(size=4)", calibration=Calibration(given, steps=12)
    )
    assert fast.plan.measured["relative_error"] < plain.plan.measured["relative_error"]
    own = fast.state_dict()
    assert any(not torch.equal(own[name], x) for name, x in before.items())
    assert all(torch.equal(x, before[name]) for name, x in padded.state_dict().items())
    assert not fast.plan.revert("*").tensors.keys() & before.keys()
    with pytest.raises(PlanError, match="changes the model's own weights for one choice"):
        auto(padded, fit="all", calibration=Calibration(given, fit="all", train="lora"))


def test_without_calibration_nothing_is_fitted(padded):
    fast = subquad.optimize(
        padded,
        batches(1)[0],
        attention="auto",
        budget=Budget(relative_error=0.9, prefer="linear"),
        machine="epyc",
    )
    tried = {option.recipe for site in fast.plan.sites for option in site.options}
    assert "window" in tried and not tried & {"hedgehog", "lolcats(size=32)"}
    assert not fast.plan.tensors and "without calibration" in fast.plan.note


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({}, PlanError, "chooses within a budget; say what must hold"),
        ({"attention": "elu1", "budget": Budget(cosine=0.9)}, PlanError, 'budget= is for attention="auto"'),
        ({"attention": "elu1", "lengths": [4]}, PlanError, 'lengths= is for attention="auto"'),
        ({"attention": "exact", "calibration": []}, PlanError, "calibration= is for recipes"),
        ({"budget": Budget(cosine=0.9), "calibration": []}, CalibrationError, "0 calibration batches"),
        ({"budget": Budget(cosine=0.9), "lengths": [512]}, PlanError, "captured with 12 tokens fixed"),
        ({"budget": Budget(cosine=0.9), "lengths": []}, PlanError, "numbers of tokens are wanted"),
        (
            {"budget": Budget(cosine=0.9), "calibration": Calibration(batches(4), recipes=["elu2"])},
            RecipeError, "unknown recipe 'elu2'",
        ),
        (
            {"budget": Budget(cosine=0.9), "calibration": Calibration(batches(4), recipes=LOLCATS)},
            CalibrationError, "one spelling can be a candidate",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(padded, options, kind, message):
    options = {"attention": "auto", "machine": "epyc", **options}
    if options["attention"] != "auto":
        del options["machine"]
    with pytest.raises(kind, match=message):
        subquad.optimize(padded, batches(1)[0], **options)


def test_tightened_shares_add_as_errors_do():
    budget = tightened(Budget(cosine=0.9, relative_error=0.2, kl=0.5), 0.25)
    assert budget.limits() == pytest.approx({"cosine": 0.025, "relative_error": 0.1, "kl": 0.125})


def test_a_plan_is_data(fitted):
    fast, _ = fitted
    told = json.loads(json.dumps(fast.plan.to_dict()))
    assert [site["path"] for site in told["sites"]] == [site.path for site in fast.plan.sites]
    assert machine_named("epyc").name == fast.plan.machine
