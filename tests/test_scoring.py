"""What a recipe does to a model: at its site, to first order, end to end; and the batches that say it."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from subquad.calibration import Calibration, read
from subquad.ir import CalibrationError
from subquad.passes import find_sites, recipe_named
from subquad.scoring import Nudges, errors_of, first_order, local_errors, rows_of
from subquad.taps import Taps
from subquad.trial import Trial


class Padded(nn.Module):
    """Two layers of attention over padded tokens: x [b, n, 16], mask [b, n] -> [b, n, 16]."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))

    def forward(self, x, mask):
        for layer in self.layers:
            q, k, v = layer(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None]).transpose(
                1, 2
            ).flatten(2)
        return x


@pytest.fixture(scope="module")
def padded():
    torch.manual_seed(0)
    return Padded().eval()


def batches(count=6, b=3, n=12):
    made = torch.Generator().manual_seed(1)
    lengths = [torch.randint(n // 2, n + 1, (b,), generator=made) for _ in range(count)]
    return [(torch.randn(b, n, 16, generator=made), torch.arange(n) < size[:, None]) for size in lengths]


@pytest.fixture(scope="module")
def ready(padded):
    trial = Trial(padded, batches(1)[0])
    return trial, read(Calibration(batches()), trial.captured.signature)


def test_batches_are_split_once_and_alike_by_seed(padded):
    signature = Trial(padded, batches(1)[0]).captured.signature
    first, again = (read(Calibration(batches(10), seed=3), signature) for _ in range(2))
    other = read(Calibration(batches(10), seed=4), signature)
    assert [len(part) for part in (first.fit, first.score, first.verify)] == [6, 2, 2]
    assert first.digest() == again.digest() != other.digest()
    parts = [id(batch) for part in (first.fit, first.score, first.verify) for batch in part]
    assert len(set(parts)) == 10


@pytest.mark.parametrize("form", ["tuple", "mapping", "pair"])
def test_forms_of_a_batch(padded, form):
    given = batches(3)
    forms = {
        "tuple": given,
        "mapping": [{"x": x, "mask": m} for x, m in given],
        "pair": [((x,), {"mask": m}) for x, m in given],
    }
    trial = Trial(padded, given[0])
    assert len(read(Calibration(forms[form]), trial.captured.signature).fit) == 1


def poisoned():
    given = batches(4)
    given[2][0][1, 3, 5] = math.nan
    return given


def failing():
    yield batches(1)[0]
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    "given, message",
    [
        (lambda: [], "0 calibration batches: it takes three or more"),
        (lambda: batches(2), "2 calibration batches"),
        (lambda: iter(()), "0 calibration batches"),
        (poisoned, r"batch 2: input 'x' holds NaN at \[1, 3, 5\]"),
        (failing, "failed after 1: OSError: the disk is gone"),
        (
            lambda: [*batches(3), (torch.randn(3, 9, 16), torch.ones(3, 9, dtype=torch.bool))],
            "batch 3 does not fit",
        ),
        (lambda: [*batches(3), (torch.randn(3, 12, 16),)], "batch 3 does not fit"),
    ],
)
def test_bad_batches_are_named(ready, given, message):
    with pytest.raises(CalibrationError, match=message):
        read(Calibration(given()), ready[0].captured.signature)


def test_what_a_calibration_may_be():
    with pytest.raises(CalibrationError, match="fit='well': it is one of none, closed"):
        Calibration(batches(), fit="well")
    with pytest.raises(CalibrationError, match="are a Tensor; pass an iterable"):
        Calibration(torch.ones(3))


@pytest.mark.parametrize("spec", ["elu1", "window(size=4)", "hedgehog"])
def test_taps_are_the_exact_results_and_the_recipes(ready, padded, spec):
    trial, given = ready
    taps = Taps(trial.captured, trial.graph, [(i, recipe_named(spec)) for i in (0, 1)])
    batch = given.score[0]
    with torch.no_grad():
        found = taps(batch.inputs)
        x, mask = batch.args
        for at, layer in enumerate(padded.layers):
            q, k, v = layer(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
            torch.testing.assert_close(found[at].exact, exact)
            assert torch.equal(found[at].rows, mask)
            x = x + exact.transpose(1, 2).flatten(2)


def test_taps_give_gradients_to_the_recipes_weights_alone(ready, padded):
    trial, given = ready
    taps = Taps(trial.captured, trial.graph, [(0, recipe_named("hedgehog"))])
    taps(given.fit[0].inputs)[0].squares()[0].backward()
    assert set(taps.names(0)) == set(taps.learned)
    assert all(
        w.grad is not None and w.grad.abs().sum() > 0 for w in taps.learned.values() if w.requires_grad
    )
    assert all(p.grad is None for p in padded.parameters())


def test_refused_taps_say_why(ready):
    trial, _ = ready
    taps = Taps(trial.captured, trial.graph, [(0, recipe_named("agent")), (0, recipe_named("elu1"))])
    assert list(taps.refused) == [0] and "agent honours none" in taps.refused[0]
    assert list(taps.made) == [1]


def test_padded_tokens_count_nowhere(ready):
    trial, given = ready
    taps = Taps(trial.captured, trial.graph, [(0, recipe_named("elu1"))])
    batch = given.score[0]
    x, mask = batch.args
    other = (torch.where(mask[..., None], x, 100.0), mask)
    again = type(batch)(other, {}, other)
    assert local_errors(taps, [batch])[0] == pytest.approx(local_errors(taps, [again])[0], rel=1e-5)
    exact, fast = trial.put("exact")[0], trial.put("elu1")[0]
    rows = rows_of(trial.captured, trial.graph)
    assert torch.equal(rows(batch.inputs), mask)
    first, second = (errors_of(exact, fast, [b], rows).errors() for b in (batch, again))
    assert first == pytest.approx(second, rel=1e-4)


def test_first_order_is_the_size_of_what_reaches_the_outputs(ready):
    """|J d| by the definition, against probes of random signs: equal on average."""
    trial, given = ready
    sites = find_sites(trial.graph)
    nudges = Nudges(trial.captured, trial.graph, [site.op for site in sites])
    taps = Taps(trial.captured, trial.graph, [(i, recipe_named("window(size=4)")) for i in (0, 1)])
    batch = given.score[0]
    with torch.no_grad():
        found = taps(batch.inputs)
        exact = nudges._run(
            [*batch.inputs, *(torch.zeros_like(t.exact) for t in found.values())], nudges._own
        )[0][0]
    for at, tap in found.items():

        def outputs(d, at=at):
            nudged = [d if i == at else torch.zeros_like(t.exact) for i, t in found.items()]
            return nudges._run([*batch.inputs, *nudged], nudges._own)[0][0]

        d = 0.01 * (tap.made - tap.exact)
        with torch.no_grad():
            expected = float((outputs(d) - outputs(-d)).norm() / exact.norm()) / 0.02
        estimated = first_order(taps, nudges, [0, 1], [batch], probes=200)[at]
        assert estimated == pytest.approx(expected, rel=0.15)


def test_a_nan_of_a_recipe_is_an_infinite_error(ready):
    trial, given = ready
    taps = Taps(trial.captured, trial.graph, [(0, recipe_named("hedgehog"))])
    bad = {name: torch.full_like(w, math.nan) for name, w in taps.learned.items()}
    assert local_errors(taps, given.score, bad)[0] == math.inf
