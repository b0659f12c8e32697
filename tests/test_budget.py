"""Budgets: what may be asked, how errors of outputs are measured, and what their bounds promise."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

import subquad.budget
from subquad import Budget
from subquad.budget import ERRORS, Tally, additive, drop, errors, figure, total
from subquad.ir import SubquadError

NAN, INF = math.nan, math.inf


def pair(*shape, noise=0.1, seed=0):
    """Outputs, and outputs that are near them."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw)
    return x, x + noise * torch.randn(shape, generator=draw)


# ---- what may be asked -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "without anything that must hold"),
        ({"prefer": "linear"}, "without anything that must hold"),
        ({"cosine": -1.0}, r"Budget\(cosine=-1.0\): must be in \(-1, 1\]"),
        ({"cosine": 1.01}, r"must be in \(-1, 1\]"),
        ({"kl": -0.1}, r"Budget\(kl=-0.1\): must be at least 0"),
        ({"relative_error": NAN}, "a finite number is wanted"),
        ({"relative_error": "0.1"}, "a finite number is wanted"),
        ({"kl": True}, "a finite number is wanted"),
        ({"speedup": 0}, "must be above 0"),
        ({"memory": 0.0}, "must be above 0"),
        ({"metric": len}, "Budget\\(metric=...\\) without max_drop="),
        ({"max_drop": 0.1}, "Budget\\(max_drop=...\\) without metric="),
        ({"metric": 0.9, "max_drop": 0.1}, "a function of the module is wanted"),
        ({"kl": 0.1, "prefer": "speed"}, "one of 'time', 'linear'"),
    ],
)
def test_what_means_nothing_is_refused(given, message):
    with pytest.raises(SubquadError, match=message):
        Budget(**given)


def test_limits_are_on_errors():
    budget = Budget(relative_error=0.1, cosine=0.75, kl=0, metric=len, max_drop=np.float32(0.5))
    assert budget.limits() == {"relative_error": 0.1, "cosine": 0.25, "kl": 0.0, "drop": 0.5}
    assert tuple(budget.limits()) == ERRORS
    assert Budget(speedup=2).limits() == {}


def test_what_is_broken_is_said_with_figures():
    budget = Budget(cosine=0.99, kl=0.1, speedup=2, memory=0.5)
    assert budget.holds({"cosine": 0.01 - 1e-9, "kl": 0.1}) == []
    assert budget.holds({"cosine": 0.02, "kl": NAN, "speedup": 1.5, "memory": 0.75}) == [
        "cosine 0.98, at least 0.99",
        "KL nan, at most 0.1",
        "speedup 1.5, at least 2 was asked",
        "memory 0.75 of the original's, at most 0.5",
    ]
    assert budget.holds({"cosine": 0.0}) == ["KL is limited to 0.1, and was not measured"]
    assert figure("drop", 0.25) == "drop of the metric 0.25"


def test_a_budget_comes_back_from_json_without_its_metric():
    budget = Budget(cosine=np.float32(0.5), memory=0.5, prefer="linear")
    assert Budget.from_dict(json.loads(json.dumps(budget.to_dict()))) == budget
    saved = json.loads(json.dumps(Budget(metric=len, max_drop=0.1).to_dict()))
    assert saved == {"metric": True, "max_drop": 0.1, "prefer": "time"}
    assert Budget.from_dict(saved, metric=len) == Budget(metric=len, max_drop=0.1)
    again = Budget.from_dict(saved)
    assert again.to_dict() == saved
    with pytest.raises(SubquadError, match="a metric is a function, which is not saved"):
        again.metric(torch.nn.Identity())
    with pytest.raises(SubquadError, match="no accuracy: it was written by another version"):
        Budget.from_dict({"accuracy": 0.9})


def test_a_budget_prints_what_was_given():
    assert str(Budget(cosine=0.99)) == "Budget(cosine=0.99)"
    assert str(Budget(metric=len, max_drop=0.1, prefer="linear")) == (
        "Budget(metric=len, max_drop=0.1, prefer='linear')"
    )


# ---- how errors add --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ERRORS)
def test_errors_add_and_come_back(name):
    assert total(name, additive(name, 0.3)) == pytest.approx(0.3)
    assert additive(name, NAN) == INF and total(name, INF) == INF
    assert additive(name, -0.2) == 0.0
    two = total(name, 2 * additive(name, 0.3))
    assert two == pytest.approx(0.3 * math.sqrt(2) if name == "relative_error" else 0.6)


def test_independent_errors_add_as_they_are_said_to():
    """Differences of random directions: relative errors in squares, 1 - cosine plainly."""
    draw = torch.Generator().manual_seed(0)
    x, d, e = (torch.randn(64, 512, generator=draw, dtype=torch.float64) for _ in range(3))
    one, other, both = errors(x, x + 0.05 * d), errors(x, x + 0.08 * e), errors(x, x + 0.05 * d + 0.08 * e)
    for name in ("relative_error", "cosine"):
        sum = additive(name, one[name]) + additive(name, other[name])
        assert total(name, sum) == pytest.approx(both[name], rel=0.02)


def test_a_drop_is_what_the_metric_lost():
    assert drop(0.9, 0.75) == pytest.approx(0.15)
    assert drop(0.9, 0.95) == 0.0
    assert drop(0.9, NAN) == INF


# ---- errors of outputs -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_errors_are_what_their_names_say(dtype):
    x, y = (t.to(dtype) for t in pair(3, 5, 16))
    a, b = x.double(), y.double()
    found = errors(x, y)
    assert set(found) == {"relative_error", "cosine", "kl"}
    assert found["relative_error"] == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-12)
    assert found["cosine"] == pytest.approx(float(1 - F.cosine_similarity(a, b, dim=-1).mean()), rel=1e-9)
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    assert found["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-9)


def test_equal_outputs_have_no_error_at_all():
    x, _ = pair(4, 7, 9)
    assert errors(x, x.clone()) == {"relative_error": 0.0, "cosine": 0.0, "kl": 0.0}
    assert errors(torch.zeros(2, 3), torch.zeros(2, 3)) == {"relative_error": 0.0, "cosine": 0.0, "kl": 0.0}


def test_a_vector_that_vanished_lost_its_direction():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert errors(x, x * torch.tensor([[1.0], [0.0]]))["cosine"] == 0.5
    assert errors(x, -x)["cosine"] == pytest.approx(2.0)
    assert errors(torch.zeros(1, 2), torch.ones(1, 2))["relative_error"] == INF


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_nan_never_passes(bad):
    x, y = pair(2, 3, 4)
    y[1, 2, 0] = bad
    tally = Tally()
    tally.add(x, y)
    assert tally.errors()["relative_error"] == INF and tally.errors()["cosine"] == INF
    assert set(tally.bounds().values()) >= {INF} and tally.bounds()["relative_error"] == INF
    both = x.clone()
    both[1, 2, 0] = NAN
    assert set(errors(both, both).values()) == {INF}
    budget = Budget(relative_error=1e9, cosine=-0.999, kl=1e9)
    assert len(budget.holds(errors(x, torch.full_like(x, NAN)))) == 3


def test_tokens_that_are_ruled_out_in_both_do_no_harm():
    x, y = pair(2, 3, 8)
    a, b = (F.pad(t, (0, 2), value=-INF) for t in (x, y))
    expected = errors(x, y)
    assert errors(a, b) == pytest.approx(expected, rel=1e-12)
    assert errors(a, F.pad(y, (0, 2)))["kl"] == pytest.approx(
        float((x.double().log_softmax(-1).exp() * (
            x.double().log_softmax(-1) - F.pad(y, (0, 2)).double().log_softmax(-1)[..., :8])).sum(-1).mean())
    )  # fmt: skip
    assert errors(F.pad(x, (0, 2)), b)["kl"] == INF  # what the original allows was made impossible


def test_padding_is_left_out_whatever_stands_there():
    x, y = pair(2, 6, 8)
    weights = torch.ones(2, 6)
    weights[1, 4:] = 0
    dirty = y.clone()
    dirty[1, 4:] = NAN
    rows = [(x[0], y[0]), (x[1, :4], y[1, :4])]
    kept = torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows])
    for mask in (weights, weights.bool()):
        tally = Tally()
        tally.add(x, dirty, mask)
        assert tally.errors() == pytest.approx(errors(*kept), rel=1e-12)
        assert tally.samples == 2
    pooled = {"hidden": (x, dirty), "pooled": pair(2, 8, seed=1)}
    before, after = ({name: p[side] for name, p in pooled.items()} for side in (0, 1))
    assert math.isfinite(errors(before, after, weights)["cosine"])
    assert errors(x, dirty, torch.tensor([1.0, 0.0])) == pytest.approx(errors(x[:1], y[:1]))
    with pytest.raises(SubquadError, match="at least 0"):
        errors(x, y, -weights)


def test_batches_add_up_to_the_whole():
    x, y = pair(6, 5, 8)
    whole, parts = Tally(), Tally()
    whole.add(x, y)
    for at in (slice(0, 1), slice(1, 4), slice(4, 6)):
        parts.add(x[at], y[at])
    assert parts.samples == whole.samples == 6
    assert parts.errors() == pytest.approx(whole.errors(), rel=1e-12)
    assert parts.bounds() == pytest.approx(whole.bounds(), rel=1e-9)


def test_large_outputs_are_measured_in_pieces(monkeypatch):
    x, y = pair(3, 5, 8)
    whole = errors(x, y)
    monkeypatch.setattr(subquad.budget, "CHUNK", 20)
    assert errors(x, y) == pytest.approx(whole, rel=1e-12)


def test_outputs_may_be_nested():
    (x, y), (u, v) = pair(2, 3, 4), pair(2, 4, seed=1)
    before = {"logits": x, "rest": (u, torch.tensor([1, 2]), None)}
    after = {"logits": y, "rest": (v, torch.tensor([7, 7]), None)}
    found = errors(before, after)
    flat = torch.cat([x.flatten(), u.flatten()]).double(), torch.cat([y.flatten(), v.flatten()]).double()
    assert found["relative_error"] == pytest.approx(float((flat[1] - flat[0]).norm() / flat[0].norm()))
    rows = torch.cat([x.reshape(-1, 4), u]), torch.cat([y.reshape(-1, 4), v])
    assert found["cosine"] == pytest.approx(errors(*rows)["cosine"], rel=1e-9)


def test_numbers_without_a_vector_count_in_the_relative_error_alone():
    tally = Tally()
    tally.add((torch.tensor([3.0, 4.0]), torch.tensor(12.0)), (torch.tensor([3.0, 4.0]), torch.tensor(25.0)))
    assert tally.errors() == {"relative_error": 1.0}  # 13 of |(3, 4, 12)| = 13
    assert tally.samples == 2
    assert Budget(cosine=0.9).holds(tally.errors()) == ["1 - cosine is limited to 0.1, and was not measured"]


def test_outputs_of_other_structure_or_shape_are_refused():
    x = torch.ones(2, 3)
    with pytest.raises(SubquadError, match="different structures"):
        errors({"a": x}, {"b": x})
    with pytest.raises(SubquadError, match=r"output a has shape \(2, 2\), that of the original \(2, 3\)"):
        errors({"a": x}, {"a": x[:, :2]})
    with pytest.raises(SubquadError, match="no output is a tensor of floats"):
        errors({"a": torch.tensor([1])}, {"a": torch.tensor([1])})


# ---- bounds ----------------------------------------------------------------------------------------


def test_the_bound_is_students_on_a_mean():
    """Rows of one vector: the mean of 1 - cosine over rows is a plain mean."""
    x, y = pair(12, 8, noise=0.5)
    tally = Tally()
    tally.add(x, y)
    own = [errors(x[i : i + 1], y[i : i + 1]) for i in range(12)]
    for name in ("cosine", "kl"):
        values = [e[name] for e in own]
        expected = np.mean(values) + stats.t.ppf(0.95, 11) * stats.sem(values)
        assert tally.bounds(0.95)[name] == pytest.approx(expected, rel=1e-9)


def test_the_bound_of_a_ratio_is_by_jackknife():
    x, y = pair(9, 8, noise=0.5)
    x *= torch.arange(1, 10)[:, None]
    tally = Tally()
    tally.add(x, y)
    off = (x.double() - y.double()).square().sum(1).numpy()
    own = x.double().square().sum(1).numpy()
    left = [(off.sum() - a) / (own.sum() - b) for a, b in zip(off, own)]
    spread = math.sqrt(8 * np.var(left))
    expected = math.sqrt(off.sum() / own.sum() + stats.t.ppf(0.99, 8) * spread)
    assert tally.bounds()["relative_error"] == pytest.approx(expected, rel=1e-9)


def test_bounds_hold_as_often_as_they_say():
    """Of 400 draws of eight samples, the true error is above the 95% bound in about one of twenty."""
    draw, missed = np.random.default_rng(0), 0
    for _ in range(400):
        noise = torch.tensor(draw.uniform(0.05, 0.15, (8, 1)))
        x = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(8, 2)
        tally = Tally()
        tally.add(x, x + noise * torch.tensor([0.0, 1.0]))
        missed += tally.bounds(0.95)["relative_error"] ** 2 < (0.15**3 - 0.05**3) / 0.3
    assert 8 <= missed <= 36


def test_few_samples_promise_little():
    x, y = pair(8, 6, 16)
    widths = []
    for n in (1, 2, 4, 8):
        tally = Tally()
        tally.add(x[:n], y[:n])
        found, bounds = tally.errors(), tally.bounds()
        assert all(bounds[name] >= found[name] for name in found)
        widths.append(bounds["cosine"] - found["cosine"])
    assert widths[0] == INF and widths[1] > widths[3]
    assert Tally().bounds() == Tally().errors() == {}
    with pytest.raises(SubquadError, match=r"a number in \[0.5, 1\)"):
        Tally().bounds(1.0)


def test_no_error_is_bounded_by_none():
    x, _ = pair(3, 4)
    tally = Tally()
    tally.add(x, x)
    assert set(tally.bounds().values()) == {0.0}
