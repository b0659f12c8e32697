"""Fitting: closed forms, layer by layer, end to end; held-out batches judge, and the model stays as it is."""

import functools
import math

import numpy as np
import pytest
import torch
from test_every_recipe import Encoder, padded
from torch import nn

from subquad.api import captured_at, linearizing, recipes_of
from subquad.assemble import assembled
from subquad.calibration import Batch
from subquad.closed import observe
from subquad.descent import Run, descend, parted
from subquad.distil import fit_end_to_end
from subquad.fit import fit_layers
from subquad.ir import CalibrationError
from subquad.passes import EXACT, RECIPES, Pipeline, canonicalize, find_sites, recipe_named
from subquad.passes.recipes.observed import CLOSED, Observed, starts
from subquad.passes.recipes.slots import kmeans

D, N = 32, 24


class Setting:
    """Two blocks of attention, captured, and batches for them."""

    def __init__(self, causal=False, mask=None):
        torch.manual_seed(0)
        self.model = Encoder(causal).eval()
        for block in self.model.layers:
            block.qkv.weight.data *= 3  # so that attention looks somewhere
        args = [(torch.randn(2, N, D), *([] if mask is None else [mask])) for _ in range(6)]
        self.captured, _, _ = captured_at(self.model, args[0], {}, None)
        self.graph = EXACT.run(self.captured.graph)[0]
        flat = self.captured.signature.flatten
        self.batches = [Batch(a, {}, tuple(flat(a, {}))) for a in args]

    def chosen(self, *specs):
        return [(i, recipe_named(spec)) for spec in specs for i in range(2)]

    def layers(self, *specs, **options):
        given = {"steps": 12, "seconds": 600.0} | options
        return fit_layers(self.captured, self.graph, self.chosen(*specs), self.batches, **given)

    @functools.cached_property
    def hedgehog(self):
        """Fitted once for many tests."""
        return self.layers("hedgehog")

    def linear(self, spec):
        return Pipeline(linearizing(recipes_of(spec)), canonicalize).run(self.graph)[0]

    def off(self, spec, weights):
        """Relative error of the outputs over all batches."""
        fast = assembled(self.model, self.captured, self.linear(spec), weights=weights)
        with torch.no_grad():
            pairs = [(self.model(*b.args), fast(*b.args)) for b in self.batches]
        above, below = (sum(x) for x in zip(*[((y - x).square().sum(), x.square().sum()) for x, y in pairs]))
        return float((above / below).sqrt())


@pytest.fixture(scope="module")
def both():
    return Setting(mask=padded(2, N))


@pytest.fixture(scope="module")
def decoder():
    return Setting(causal=True)


# ---- layer by layer ------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["hedgehog", "lolcats(size=4)", "slots(size=4,count=4)"])
def test_layers_come_nearer_to_attention(both, spec):
    """On the held-out batches at every site, and the outputs with them."""
    found = both.layers(spec)
    pairs = list(zip(found.before, found.after))
    assert all(after < before for before, after in pairs), pairs
    assert min(after / before for before, after in pairs) < 0.99, pairs
    assert both.off(spec, found.weights) < both.off(spec, {})
    assert found.steps == 12 and not found.refused


def test_errors_are_those_of_the_sites(both):
    """What `after` says, by the oracle's definition on the held-out batches: padded tokens left out."""
    from subquad.taps import Taps

    found = both.hedgehog
    taps = Taps(both.captured, both.graph, both.chosen("hedgehog"))
    _, held = parted(both.batches, 0)
    keep = padded(2, N)[:, None, :, None]
    for at, name in ((0, "after"), (1, "after")):
        sums = np.zeros(2)
        for batch in held:
            tap = taps(batch.inputs, found.at[at])[at]
            exact, made = (torch.where(keep, x, 0.0).detach().double().numpy() for x in (tap.exact, tap.made))
            sums += ((made - exact) ** 2).sum(), (exact**2).sum()
        assert math.isclose(math.sqrt(sums[0] / sums[1]), getattr(found, name)[at], rel_tol=1e-4)


def test_equal_seeds_give_equal_weights(both):
    """But for rounding, which in torch's kernels depends on addresses; another seed gives others."""
    one, two, other = (both.layers("hedgehog", steps=5, seed=seed).weights for seed in (1, 1, 2))
    for name, x in one.items():
        torch.testing.assert_close(x, two[name], rtol=1e-5, atol=1e-6)
    assert any(float((x - other[name]).abs().max()) > 1e-4 for name, x in one.items())


def test_spellings_of_one_recipe_are_fitted_apart(both):
    """Their weights have one name, so they come by position."""
    specs = ("lolcats(size=4)", "lolcats(size=4,affine=true)", "window(size=4)")
    found = both.layers(*specs, steps=4)
    assert found.at[0].keys() == found.at[2].keys() and found.at[0]
    assert any(not torch.equal(x, found.at[2][name]) for name, x in found.at[0].items())
    assert found.at[4] == {} and found.after[4] is None  # window learns nothing


def test_what_does_not_fit_its_site_is_refused(both):
    found = both.layers("gla", "hedgehog", steps=1)
    assert set(found.refused) == {0, 1} and "causal" in found.refused[0]
    assert found.at[0] == {} and found.at[2]


def test_no_steps_and_no_seconds_are_no_change(both):
    """The start is handed back where there is no time, and it is no worse where there is."""
    still = both.layers("hedgehog", steps=0)
    assert still.before == still.after and still.steps == 0
    assert both.layers("hedgehog", seconds=0.0).steps == 0
    begun = both.layers("hedgehog", steps=3, start=both.hedgehog.weights)
    assert all(x < y for x, y in zip(begun.before, still.before))
    assert all(x <= y for x, y in zip(begun.after, begun.before))


def test_no_batches_are_refused(both):
    with pytest.raises(CalibrationError, match="no batch"):
        fit_layers(both.captured, both.graph, both.chosen("hedgehog"), [])
    with pytest.raises(CalibrationError, match="no batch"):
        fit_end_to_end(both.captured, both.graph, both.linear("hedgehog"), [])


# ---- descent -------------------------------------------------------------------------------------


class Bowl(Run):
    """Two groups that go to 3 from 0 each; the loss of the second is NaN on the steps of `bad`."""

    def __init__(self, bad=()):
        super().__init__({0: ["a"], 1: ["b"]}, {n: torch.zeros(1) for n in "ab"}, {n: 1.0 for n in "ab"})
        self.calls, self.bad = 0, bad

    def losses(self, batch):
        if torch.is_grad_enabled():
            self.calls += 1
        factor = math.nan if torch.is_grad_enabled() and self.calls in self.bad else 1.0
        pairs = {0: self.live["a"], 1: self.live["b"] * factor}
        return {group: ((x - 3).square().sum(), torch.ones(())) for group, x in pairs.items()}


def test_it_goes_down():
    run = Bowl()
    assert descend(run, [None] * 3, [None], seed=0, seconds=600.0, steps=100, rate=0.3) == 100
    assert all(abs(run.live[n].item() - 3) < 0.3 for n in "ab")


def test_a_step_that_is_not_finite_is_not_taken():
    """Of its group alone, which goes on from its best."""
    run, whole = Bowl(bad={10, 11, 50}), Bowl()
    for x in (run, whole):
        descend(x, [None] * 3, [None], seed=0, seconds=600.0, steps=100, rate=0.3)
    assert torch.equal(run.live["a"], whole.live["a"])
    assert math.isfinite(run.live["b"].item()) and abs(run.live["b"].item() - 3) < 1
    lost = Bowl(bad=range(1000))
    descend(lost, [None] * 3, [None], seed=0, seconds=600.0, steps=20, rate=0.3)
    assert lost.live["b"].item() == 0.0 and lost.least[1] == lost.first[1]


def test_batches_are_parted_once():
    for count in (2, 3, 10, 200):
        fit, held = parted(list(range(count)), 0)
        assert sorted([*fit, *held]) == list(range(count)) and fit and held
    assert parted([1], 0) == ([1], [1])


# ---- closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_what_attention_did(both, decoder, causal):
    """Against the attention matrix itself, which `observe` never makes."""
    setting = decoder if causal else both
    seen = observe(setting.captured, setting.graph, [0, 1], setting.batches[:2])
    model = setting.model
    q, k, weights, keep = [], [], [], torch.ones(2, N, dtype=torch.bool) if causal else padded(2, N)
    for batch in setting.batches[:2]:
        block = model.layers[0]
        qkv = block.qkv(block.norm1(batch.args[0])).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        score = qkv[0] @ qkv[1].mT * 16**-0.5
        score = score.masked_fill(~keep[:, None, None, :], -math.inf)
        if causal:
            score = score.masked_fill(~torch.ones(N, N, dtype=torch.bool).tril(), -math.inf)
        q, k = [*q, qkv[0]], [*k, qkv[1]]
        weights.append(score.softmax(-1).double() * keep[:, None, :, None])
    rows = 2 * int(keep.sum())
    moment = sum(torch.einsum("bhnd,bhne,bn->hde", x.double(), x.double(), keep.double()) for x in q) / rows
    np.testing.assert_allclose(seen[0].queries, moment.detach(), rtol=1e-4, atol=1e-5)
    apart = (torch.arange(N)[:, None] - torch.arange(N)).double()
    if causal:
        distance = sum((w * apart).sum((0, 2, 3)) for w in weights) / rows
    else:
        distance = sum((w * apart**2).sum(-1).sqrt().sum((0, 2)) for w in weights) / rows
    np.testing.assert_allclose(seen[0].distance, distance.detach(), rtol=2e-3)
    assert math.isclose(seen[0].mass.sum(), rows * 2, rel_tol=1e-4)  # of two heads; every key was kept
    assert seen[0].keys.shape == (2, rows, 16)


def test_k_means_finds_clusters():
    rng = np.random.default_rng(1)
    centre = rng.standard_normal((2, 5, 3)) * 10
    x = np.concatenate([centre[:, [i % 5]] + 0.01 * rng.standard_normal((2, 1, 3)) for i in range(200)], 1)
    found, lost = kmeans(x, np.ones((2, 200)), 5)
    nearest = np.abs(found[:, :, None] - centre[:, None]).max(-1).min(1)
    assert nearest.max() < 0.05 and lost.max() < 1e-3


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_closed_forms_give_weights_of_their_recipe(name):
    """Finite, by names that it learns, of sizes that broadcast."""
    rng = np.random.default_rng(0)
    seen = Observed(0.25, np.tile(np.eye(16), (2, 1, 1)), rng.standard_normal((2, 100, 16)),
                    rng.random((2, 100)), np.array([0.1, 50.0]))  # fmt: skip
    found = starts(RECIPES[name], seen)
    assert found and found.keys() <= RECIPES[name].learns.keys()
    assert all(np.isfinite(x).all() for x in found.values())
    assert starts(RECIPES["elu1"], seen) == {}


def test_decays_halve_where_attention_looks(decoder):
    """By the formulas of the recipes, at every site."""
    seen = observe(decoder.captured, decoder.graph, [0], parted(decoder.batches, 0)[0])[0]
    step = math.log(2) / seen.distance
    by_name = {
        "gated_deltanet": ("dt_bias", np.logaddexp(0, starts(RECIPES["gated_deltanet"], seen)["dt_bias"])),
        "gla": ("decay_bias", np.logaddexp(0, -starts(RECIPES["gla"], seen)["decay_bias"][::16]) / 16),
        "rwkv6": ("decay_bias", np.exp(starts(RECIPES["rwkv6"], seen)["decay_bias"][::16])),
    }
    for name, (_, found) in by_name.items():
        np.testing.assert_allclose(found, step, rtol=1e-6, err_msg=name)
    fitted = decoder.layers("gated_deltanet", steps=0)
    assert all(after <= before for before, after in zip(fitted.before, fitted.after))


def test_slots_start_nearer_from_their_closed_form(both):
    """On batches that it has not seen."""
    plain = both.layers("slots(size=4,count=4)", steps=0, closed=False)
    found = both.layers("slots(size=4,count=4)", steps=0)
    assert found.before == plain.after
    assert all(after < before for before, after in zip(found.before, found.after))


# ---- end to end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("train, loss", [("recipes", "kl"), ("lora", "cosine"), ("all", "relative_error")])
def test_outputs_come_nearer(both, train, loss):
    """And the user's model is what it was."""
    before = {name: x.clone() for name, x in both.model.state_dict().items()}
    start = both.hedgehog.weights
    found = fit_end_to_end(
        both.captured, both.graph, both.linear("hedgehog"), both.batches, weights=start, train=train,
        loss=loss, rank=2, steps=12, seconds=600.0, rate=0.03,
    )  # fmt: skip
    assert found.after[0] < found.before[0]
    assert both.off("hedgehog", found.weights) < both.off("hedgehog", start)
    own = found.weights.keys() & before.keys()
    assert bool(own) == (train != "recipes") and start.keys() <= found.weights.keys()
    for name, x in both.model.state_dict().items():
        assert torch.equal(x, before[name])
    if train == "lora":
        for name in own:
            assert np.linalg.matrix_rank((found.weights[name] - before[name]).numpy(), tol=1e-5) <= 2


def test_tables_that_are_looked_up_stay():
    """An embedding is no weight that a short fit should touch."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.body = nn.Embedding(11, D), Encoder()

        def forward(self, ids):
            return self.body(self.table(ids))

    torch.manual_seed(0)
    model, args = Words().eval(), (torch.randint(0, 11, (2, N)),)
    captured, _, _ = captured_at(model, args, {}, None)
    graph = EXACT.run(captured.graph)[0]
    linear = Pipeline(linearizing(recipes_of("elu1")), canonicalize).run(graph)[0]
    batches = [Batch(args, {}, tuple(captured.signature.flatten(args, {})))]
    found = fit_end_to_end(captured, graph, linear, batches, train="all", steps=4)
    assert "table.weight" not in found.weights and "body.layers.0.qkv.weight" in found.weights
    assert found.after[0] < found.before[0]
    assert len(find_sites(graph)) == 2


def test_unknown_words_are_refused(both):
    for wrong in ({"train": "some"}, {"loss": "mse"}):
        with pytest.raises(CalibrationError, match="it is one of"):
            fit_end_to_end(both.captured, both.graph, both.linear("elu1"), both.batches, **wrong)
