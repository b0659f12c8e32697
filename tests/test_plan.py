"""Plans: choices made again from what was measured, in files, as text. No model runs here but in `apply`."""

import itertools
import json
import math
import os

import pytest
import torch
from safetensors.torch import save_file

import subquad
from subquad import Budget, Plan
from subquad.ir import PlanError, RecipeError, SubquadError
from subquad.plan import Option, SitePlan

LENGTHS = (512, 4096)
SECONDS = {"exact": {512: 1.0, 4096: 64.0}, "near": {512: 0.8, 4096: 16.0}, "far": {512: 0.5, 4096: 4.0}}
BYTES = {"exact": {512: 1e6, 4096: 64e6}, "near": {512: 2e6, 4096: 16e6}, "far": {512: 1e6, 4096: 8e6}}


def option(recipe, cosine=None, **fields):
    """An option with the times of its name; its relative error is the root of twice 1 - cosine."""
    errors = {} if cosine is None else {"cosine": cosine, "relative_error": math.sqrt(2 * cosine)}
    made = dict(local=10 * (cosine or 0), errors=errors, seconds=SECONDS[recipe], bytes=BYTES[recipe])
    return Option(recipe, **(made | fields))


def site(path, near, far, index=0, **fields):
    """A site with two recipes that do so much to the cosine."""
    options = (option("exact"), option("near", near), option("far", far))
    return SitePlan(path, index, "causal", options, **fields)


def plan(*sites, **fields):
    """A plan of three layers, or of these sites."""
    layers = [(0.001, 0.004), (0.002, 0.02), (0.0005, 0.003)]
    sites = sites or tuple(site(f"layers.{i}.attn", *d, index=i) for i, d in enumerate(layers))
    made = dict(lengths=LENGTHS, machine="a machine", rest_seconds={512: 3.0, 4096: 24.0})
    return Plan(sites, **(made | fields))


def chosen(found):
    """The recipe of each site."""
    return [s.chosen.recipe for s in found.sites]


# ---- choices ---------------------------------------------------------------------------------------


def best(p, allowed):
    """The least weighted time among all choices that are allowed, by the definition of the weights."""
    exact = {n: p.seconds(n, [0] * len(p.sites)) for n in p.lengths}

    def share(choice):
        return sum(p.seconds(n, choice) / exact[n] for n in p.lengths) / len(p.lengths)

    every = itertools.product(*(range(len(s.options)) for s in p.sites))
    return min(share(choice) for choice in every if allowed(choice))


@pytest.mark.parametrize("limit", [0.0, 0.0004, 0.0015, 0.0035, 0.005, 0.0085, 0.01, 0.027, 0.5])
def test_a_choice_is_the_fastest_within_the_budget(limit):
    p = plan()
    found = p.resolve(Budget(cosine=1 - limit))
    assert found.errors()["cosine"] <= limit * (1 + 1e-6)
    assert 1 / found.speedup() == pytest.approx(
        best(p, lambda choice: p.errors(choice)["cosine"] <= limit * (1 + 1e-9) + 1e-12), rel=1e-9
    )
    relative = p.resolve(Budget(relative_error=math.sqrt(2 * limit)))
    assert relative.errors()["relative_error"] <= math.sqrt(2 * limit) * (1 + 1e-6)
    assert relative.speedup() == pytest.approx(found.speedup())


def test_figures_of_a_choice():
    p = plan().resolve(Budget(cosine=0.99))
    assert chosen(p) == ["far", "near", "far"]
    assert p.errors() == pytest.approx({"cosine": 0.009, "relative_error": math.sqrt(0.018)})
    assert p.seconds(512) == pytest.approx(3 + 0.5 + 0.8 + 0.5)
    assert p.speedup(4096) == pytest.approx((24 + 3 * 64) / (24 + 4 + 16 + 4))
    assert p.speedup() == pytest.approx(2 / (1 / p.speedup(512) + 1 / p.speedup(4096)))  # harmonic mean
    assert (p.budget, p.promised, p.measured) == (Budget(cosine=0.99), None, None)


def test_another_budget_is_another_choice_and_promises_nothing():
    p = plan(promised={"cosine": 0.004}, measured={"cosine": 0.001}, note="said before")
    loose, tight = p.resolve(Budget(cosine=0.9)), p.resolve(Budget(cosine=1.0))
    assert chosen(loose) == ["far"] * 3 and chosen(tight) == ["exact"] * 3
    assert (loose.promised, loose.measured, loose.note) == (None, None, "")
    assert loose.resolve(Budget(cosine=1.0)) == tight
    assert chosen(p) == ["exact"] * 3  # plans do not change


def test_every_limit_is_kept_at_once():
    p = plan(*(
        SitePlan(f"l.{i}", i, "none", (
            option("exact"),
            option("near", errors={"cosine": 0.01, "kl": 0.5}),
            option("far", errors={"cosine": 0.5, "kl": 0.01}),
        )) for i in range(4)
    ))  # fmt: skip
    found = p.resolve(Budget(cosine=0.48, kl=0.6))
    assert sorted(chosen(found)) == ["exact", "exact", "far", "near"]
    assert p.resolve(Budget(cosine=0.48, kl=0.6)) == found


def test_what_is_faster_nowhere_is_for_linear_alone():
    slow = option("near", 0.0001, seconds={512: 2.0, 4096: 64.0})
    p = plan(SitePlan("attn", 0, "none", (option("exact"), slow)))
    time = p.resolve(Budget(cosine=0.9))
    assert chosen(time) == ["exact"]
    assert time.sites[0].reason.startswith("nothing is faster at 512, 4096 tokens")
    assert chosen(p.resolve(Budget(cosine=0.9, prefer="linear"))) == ["near"]


def test_linear_prefers_many_sites_then_time():
    p = plan(site("a", 0.003, 0.008), site("b", 0.003, 0.008), site("c", 0.003, 0.004))
    assert chosen(p.resolve(Budget(cosine=0.99, prefer="linear"))) == ["near", "near", "far"]
    fastest = p.resolve(Budget(cosine=0.99))
    assert fastest.speedup() >= p.resolve(Budget(cosine=0.99, prefer="linear")).speedup()


def test_below_the_crossover_a_guard_runs_what_is_exact():
    guarded = option("near", 0.001, crossover=1024, seconds={512: 5.0, 4096: 16.0})
    p = plan(SitePlan("attn", 0, "none", (option("exact"), guarded)), rest_seconds={})
    found = p.resolve(Budget(cosine=0.9))
    assert chosen(found) == ["near"]
    assert found.speedup(512) == 1 and found.speedup(4096) == 4
    alone = plan(*p.sites, lengths=(512,))  # one length has no guard
    assert alone.speedup(512, [1]) == pytest.approx(4 / 8) and chosen(alone.resolve(Budget(cosine=0.9))) == [
        "exact"
    ]
    linear = p.resolve(Budget(cosine=0.9, prefer="linear"))  # asked for at every length, so nothing guards it
    assert chosen(linear) == ["near"] and linear.speedup(512) == pytest.approx(1 / 5)
    late = option("near", 0.001, crossover=5000)
    beyond = plan(SitePlan("attn", 0, "none", (option("exact"), late)))
    assert chosen(beyond.resolve(Budget(cosine=0.9))) == ["exact"]


def test_time_alone_gives_the_least_damage_that_reaches_it():
    p = plan()
    found = p.resolve(Budget(speedup=1.5))
    assert found.speedup() >= 1.5
    fast = [
        p.errors(c)["relative_error"]
        for c in itertools.product(range(3), repeat=3) if p.speedup(None, c) >= 1.5
    ]  # fmt: skip
    assert found.errors()["relative_error"] == pytest.approx(min(fast), rel=1e-3)
    assert chosen(p.resolve(Budget(speedup=1.0))) == ["exact"] * 3


def test_what_cannot_be_reached_says_how_near_it_is():
    p = plan()
    with pytest.raises(PlanError, match="no choice among the options of 3 sites keeps it") as caught:
        p.resolve(Budget(cosine=0.999, speedup=2))
    assert "the nearest has" in str(caught.value) and "at 512, 4096 tokens" in str(caught.value)
    with pytest.raises(PlanError, match="ask for less"):
        p.resolve(Budget(speedup=100))


def test_memory_is_that_of_the_largest_site():
    p = plan()
    found = p.resolve(Budget(cosine=0.9, memory=0.25))
    assert chosen(found) == ["far"] * 3
    assert chosen(p.resolve(Budget(memory=0.25))) == ["near"] * 3
    with pytest.raises(PlanError, match=r"allows an attention 6.4e\+06 bytes, and nothing at layers.0.attn"):
        p.resolve(Budget(cosine=0.9, memory=0.1))


def test_an_error_that_was_not_measured_cannot_be_limited():
    with pytest.raises(PlanError, match="limits KL, which was not measured.*\n?.*1 - cosine"):
        plan().resolve(Budget(kl=0.1))
    unmeasured = option("far", errors={})
    p = plan(SitePlan("a", 0, "none", (option("exact"), option("near", 0.01), unmeasured)))
    assert chosen(p.resolve(Budget(cosine=0.9))) == ["near"]
    exact = plan(SitePlan("a", 0, "none", (option("exact"),), refused={"near": "its mask is dense"}))
    assert exact.resolve(Budget(kl=0.1)).sites[0].reason == "its mask is dense"


def test_a_plan_without_sites_keeps_every_budget():
    assert Plan((), lengths=(512,)).resolve(Budget(kl=0.0)).speedup() == 1
    assert chosen(Plan(()).revert("*")) == []


def test_options_are_one_exact_first_and_recipes():
    with pytest.raises(PlanError, match="the options of a are not one exact one, first, and recipes"):
        SitePlan("a", 0, "none", (option("near", 0.1), option("exact")))
    with pytest.raises(PlanError, match="a has 1 options, there is no number 1"):
        SitePlan("a", 0, "none", (option("exact"),), choice=1)
    with pytest.raises(PlanError, match="exact at a has no time at 77 tokens"):
        Plan((SitePlan("a", 0, "none", (option("exact"),)),), lengths=(512, 77))


# ---- sites -----------------------------------------------------------------------------------------


def test_reverted_sites_are_exact_again():
    p = plan().resolve(Budget(cosine=0.9))
    p = Plan(**{**vars(p), "promised": {"cosine": 0.05}})
    found = p.revert("layers.[01].*")
    assert chosen(found) == ["exact", "exact", "far"] and found.promised is None
    assert found.sites[0].reason == "reverted" and found.tensors == p.tensors
    assert chosen(p.revert("layers.2.attn#2")) == ["far", "far", "exact"]
    assert found.revert("layers.0.attn").promised is None
    with pytest.raises(
        RecipeError, match=r"no attention lies at 'decoder.\*'; sites: layers.0.attn, layers.1"
    ):
        p.revert("decoder.*")


def test_what_was_exact_already_keeps_its_promise():
    p = plan(promised={"cosine": 0.0})
    assert p.revert("layers.1.*").promised == {"cosine": 0.0}


def test_recipes_are_by_path_and_by_index_where_a_module_is_called_twice():
    sites = [site("shared.attn", 0.001, 0.002, index=i, choice=i % 3) for i in (2, 4, 6)]
    p = plan(*sites, site("a[0]", 0, 0, index=9, choice=2), site("b", 0, 0, index=11))
    assert p.recipes() == {"shared.attn#2": "far", "shared.attn#4": "near", "a[[]0]": "far"}


class Twice(torch.nn.Module):
    """A module of attention called twice, then another."""

    class Attention(torch.nn.Module):
        """Causal attention of one tensor with itself."""

        def forward(self, x):
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    def __init__(self):
        super().__init__()
        self.shared, self.last = self.Attention(), self.Attention()

    def forward(self, x):
        return self.last(self.shared(self.shared(x)))


def test_a_plan_is_applied_where_it_says():
    window = Option("window(size=8)", errors={"kl": 0.1}, seconds={32: 0.5})
    options = (Option("exact", seconds={32: 1.0}), window)
    made = [
        SitePlan(path, i, "causal", options, choice)
        for i, (path, choice) in enumerate([("shared", 0), ("shared", 1), ("last", 1)])
    ]
    p = Plan(tuple(made), lengths=(32,))
    x = torch.randn(1, 2, 32, 8)
    by_name = subquad.optimize(Twice(), (x,), attention=p.recipes())
    assert [s.decision for s in by_name.sites] == ["attention"] + ["window(size=8)"] * 2
    applied = p.apply(Twice(), (x,), check=False)
    assert torch.equal(applied(x), by_name(x))


# ---- time against error ----------------------------------------------------------------------------


def test_the_frontier_of_a_plan():
    p = plan().resolve(Budget(cosine=0.99))
    found = p.pareto()
    assert found.error == "cosine" and p.pareto("relative_error").error == "relative_error"
    assert found.points[0].error == 0 and found.points[0].speedup == 1
    assert found.points[-1].linear == 3
    assert all(a.error < b.error and a.speedup < b.speedup for a, b in itertools.pairwise(found.points))
    for point in found.points:
        again = p.resolve(Budget(cosine=1 - point.error * (1 + 1e-9)))
        assert again.speedup() == pytest.approx(point.speedup)
    lines = found.text(80).splitlines()
    assert lines[0].split() == ["1", "-", "cosine", "x", "faster", "at", "512", "at", "4096", "linear"]
    assert len(lines) == len(found.points) + 2 and lines[1].split()[-1] == "0/3"
    assert found.to_dict()["points"][0] == {"error": 0.0, "speedup": 1.0, "linear": 0}
    with pytest.raises(
        PlanError, match=r"pareto\('kl'\): the errors of this plan are cosine, relative_error"
    ):
        p.pareto("kl")


def test_a_frontier_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    path = plan().resolve(Budget(cosine=0.99)).pareto().plot(tmp_path / "pareto.png")
    assert path.read_bytes().startswith(b"\x89PNG")


# ---- text ------------------------------------------------------------------------------------------


def test_a_plan_prints_choices_and_what_they_promise():
    p = plan().resolve(Budget(cosine=0.99))
    assert (
        p.text(120)
        == """\
where          mask    choice    local  1 - cosine  x faster  runner-up  why
layers.0.attn  causal  far     4.0e-02     4.0e-03        16  near       40% of budget
layers.1.attn  causal  near    2.0e-02     2.0e-03         4  exact      20% of budget
layers.2.attn  causal  far     3.0e-02     3.0e-03        16  near       30% of budget

3 of 3 attentions linear, Budget(cosine=0.99)
predicted times faster, whole model on a machine, by tokens: 1.25 at 512, 4.5 at 4096
predicted errors: cosine 0.991, relative error 0.1342
promised: nothing, this choice was not verified"""
    )
    p = Plan(
        **{**vars(p), "promised": {"cosine": 0.008}, "measured": {"cosine": 0.005}, "note": "one more thing"}
    )
    assert str(p).splitlines()[-3:] == [
        "promised (bounds on batches that nothing else saw): cosine 0.992",
        "measured on them: cosine 0.995",
        "one more thing",
    ]
    assert "layers.0,2.attn" in p.revert("layers.[02].*").text()


def test_a_site_says_why_it_stayed_exact():
    p = plan().resolve(Budget(cosine=0.9995))
    assert [s.reason for s in p.sites] == [
        "near would make it cosine 0.9985",
        "near would make it cosine 0.9975",
        "100% of budget",
    ]
    assert [o.recipe for o in p.runners_up()] == ["near", "near", "exact"]
    refused = SitePlan("a", 0, "dense", (option("exact"),), refused={"x": "one reason", "y": "another"})
    assert plan(refused).resolve(Budget(cosine=0.9)).sites[0].reason == "2 recipes refused"
    assert plan().resolve(Budget(speedup=1)).sites[0].reason == "fast enough without near"
    assert plan(refused).runners_up() == [None]


# ---- files -----------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A plan with everything a plan can have, and its folder."""
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "a.w": torch.nn.Parameter(base), "b.w": base.t(), "c.w": base[1:], "d.w": base.bfloat16(),
        "e.n": torch.tensor(7),
    }  # fmt: skip
    odd = option("far", 0.1, errors={"cosine": math.inf, "kl": 0.25}, crossover=900, weights=("a.w", "b.w"))
    sites = (SitePlan("attn", 3, "causal+padding", (option("exact"), odd), 1, "why", {"near": "no"}),)
    p = plan(
        *sites, budget=Budget(kl=0.5, prefer="linear"), promised={"kl": 0.4},
        measured={"kl": 0.3, "speedup": 2.0}, tensors=tensors, note="a note",
    )  # fmt: skip
    return p, p.save(tmp_path / "new" / "plan")


def test_a_saved_plan_comes_back(saved):
    p, folder = saved
    again = Plan.load(folder)
    assert again == p and again.text() == p.text()
    assert again.tensors.keys() == p.tensors.keys()
    for name, x in p.tensors.items():
        assert again.tensors[name].dtype == x.dtype and torch.equal(again.tensors[name], x)
    assert sorted(os.listdir(folder)) == ["plan.json", "weights.safetensors"]
    assert again.resolve(Budget(kl=0.1)) == p.resolve(Budget(kl=0.1))
    assert json.loads((folder / "plan.json").read_text())["sites"] == p.to_dict()["sites"]


def test_a_plan_is_saved_over_another(saved):
    p, folder = saved
    p.revert("*").save(folder)
    assert chosen(Plan.load(folder)) == ["exact"]
    plan().save(folder)
    assert Plan.load(folder) == plan() and Plan.load(folder).tensors == {}


def test_a_save_that_fails_leaves_the_old_plan(saved, monkeypatch):
    p, folder = saved

    def refuse(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="the disk is full"):
            p.revert("*").save(folder)
    assert Plan.load(folder) == p
    assert sorted(os.listdir(folder)) == ["plan.json", "weights.safetensors"]


def test_a_metric_is_given_again(tmp_path):
    p = plan(budget=Budget(metric=lambda module: 1.0, max_drop=0.1))
    again = Plan.load(p.save(tmp_path))
    assert again.budget.max_drop == 0.1
    with pytest.raises(SubquadError, match="give it again"):
        again.budget.metric(None)


def broken(folder, **changes):
    """plan.json with other fields, None for none."""
    data = json.loads((folder / "plan.json").read_text()) | changes
    text = json.dumps({name: value for name, value in data.items() if value is not None})
    (folder / "plan.json").write_text(text)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "plan.json").unlink(), "no plan in .*, which has no plan.json"),
        (lambda f: (f / "plan.json").write_text("{"), "plan.json cannot be read: Expecting"),
        (lambda f: (f / "plan.json").write_bytes(b"\xff\xfe"), "plan.json cannot be read: 'utf-8'"),
        (lambda f: (f / "plan.json").write_text("[1]"), "plan.json cannot be read: it is no plan"),
        (lambda f: broken(f, format=99), "has format 99, written by subquad .*; this is .*reads format 1"),
        (lambda f: broken(f, sites=None), "plan.json cannot be read: no 'sites'"),
        (lambda f: broken(f, sites=[{"path": "a"}]), "plan.json cannot be read: no 'options'"),
        (lambda f: broken(f, sites=3), "plan.json cannot be read: "),
        (lambda f: broken(f, lengths=["x"]), "plan.json cannot be read: invalid literal"),
        (lambda f: broken(f, lengths=[7]), "plan.json cannot be read: exact at attn has no time at 7"),
        (lambda f: broken(f, budget={"cosine": 3}), "plan.json cannot be read: .*cosine=3"),
        (lambda f: (f / "weights.safetensors").unlink(), "weights.safetensors cannot be read: it is missing"),
        (
            lambda f: save_file({"a.w": torch.zeros(1)}, f / "weights.safetensors"),
            "weights.safetensors cannot be read: it is not the file that plan.json was saved with",
        ),
        (lambda f: (f / "weights.safetensors").write_bytes(b"x"), "it is not the file that plan.json"),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_refused(saved, harm, message):
    _, folder = saved
    harm(folder)
    with pytest.raises(PlanError, match=message):
        Plan.load(folder)


def test_fitted_weights_must_be_there(saved, tmp_path):
    p, _ = saved
    folder = Plan(**{**vars(p), "tensors": {"a.w": torch.ones(2)}}).save(tmp_path)
    with pytest.raises(PlanError, match=r"it lacks the tensors b\.w, which options are fitted with"):
        Plan.load(folder)


def test_there_must_be_a_folder(tmp_path):
    with pytest.raises(PlanError, match="which is no folder: pass a folder that plan.save"):
        Plan.load(tmp_path / "nothing")
