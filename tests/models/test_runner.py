"""What the zoo's verdicts rest on: lines that read back, processes that end, configs that are small."""

import os
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from .case import LARGEST, Case, NotBuiltError, count, spread, tiny
from .run import Result, Softmaxes, TooLongError, at_most, run
from .serve import received
from .table import Row


class Attend(nn.Module):
    """Causal attention, or a branch on its input."""

    def __init__(self, fault=""):
        super().__init__()
        self.fault, self.project = fault, nn.Linear(8, 8)

    def forward(self, x):
        """Causal self-attention of x [b, n, 8]."""
        if self.fault == "branch" and x.sum() > 0:
            return x
        q, n = self.project(x)[:, None], x.shape[1]
        keep = torch.ones(n, n, dtype=torch.bool).tril()
        return ((q @ q.mT / 8**0.5).masked_fill(~keep, float("-inf")).softmax(-1) @ q)[:, 0]


def attend(fault="", **options):
    """A case of it."""

    def build():
        if fault == "build":
            raise NotBuiltError("there is no such model")
        return tiny(lambda: Attend(fault)), {"x": torch.randn(2, 5, 8)}

    return Case("attend", "encoder", build, **options)


@pytest.mark.parametrize("once", [False, True])
def test_a_model_that_is_equal(once):
    open_ = dict(second=lambda: {"x": torch.randn(3, 9, 8)}, dynamic_shapes={"x": {0: "b", 1: "n"}})
    result = run(attend(**open_), once)
    assert result.first.status == result.second.status == "equal"
    assert result.softmaxes == result.first.recognised == 1
    assert result.first.masks == result.second.masks == {"causal": 1}
    assert result.first.error <= 1e-5 and result.first.reference == "float64"
    assert set(result.first.seconds) >= {"capture", "attention"}


@pytest.mark.parametrize("fault, status, reason", [
    ("build", "unbuilt", "there is no such model"),
    ("branch", "uncaptured", "values of a tensor"),
])  # fmt: skip
def test_what_goes_wrong_is_the_result(fault, status, reason):
    result = run(attend(fault))
    assert result.first.status == status and reason in result.first.reason


def test_results_and_lines_read_back():
    result = run(attend())
    assert Result.from_json(result.to_json()) == result
    row = Row.of(result)
    assert str(row) == "encoder/attend | equal | 1 + 0 + 0 / 1 | causal 1 | 1/1 | -"
    assert Row.parse(str(row)) == row
    row = replace(row, second="uncaptured", reason="second: it branches")
    assert Row.parse(str(row)) == row


@pytest.mark.parametrize("change", [
    dict(status="uncaptured"), dict(sites=(1, 1, 0, 2)), dict(masks="dense 2"), dict(second="uncaptured"),
    dict(second="equal (dense 2)"),
])  # fmt: skip
def test_a_row_that_gets_worse(change):
    row = Row("encoder/x", "equal", (2, 0, 0, 2), "causal 2", "4/4", "equal", "")
    assert row.worse_than(row) == []
    assert replace(row, **change).worse_than(row)


def test_a_process_that_says_nothing_is_given_up():
    read, write = os.pipe()
    assert received(read, time.monotonic() + 0.01) is None
    os.close(write)
    read, write = os.pipe()
    os.write(write, b"text")
    os.close(write)
    assert received(read, time.monotonic() + 60) == "text"


def test_a_capture_that_takes_too_long_is_given_up():
    with pytest.raises(TooLongError), at_most(0.05):
        while True:
            try:
                sum(range(10_000))
            except Exception:
                pytest.fail("it is no Exception")


def test_a_model_that_is_not_tiny_is_refused_before_it_takes_memory():
    with pytest.raises(NotBuiltError, match="at most"):
        tiny(lambda: nn.Linear(LARGEST, 100_000))


@torch.no_grad()
def test_fresh_weights_are_made_to_matter():
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    nn.init.normal_(model[0].weight, std=0.02)
    spread(model)
    assert abs(float(model[0].weight.std()) - 1 / 8) < 1e-3
    assert 0.05 < float(model[1].weight.std()) < 0.2 and 0.05 < float(model[1].bias.std()) < 0.2
    assert count(model) == 64 * 64 + 3 * 64


def test_softmaxes_are_counted_whatever_runs_them():
    q = torch.randn(1, 2, 5, 8)
    with Softmaxes() as softmaxes:
        torch.softmax(q, -1)
        nn.functional.scaled_dot_product_attention(q, q, q)
        nn.functional.scaled_dot_product_attention(q, q, q, torch.ones(5, 5, dtype=torch.bool))
        torch.log_softmax(q, -1)
    assert softmaxes.count == 3


def test_a_shrunken_config_keeps_one_layer_of_each_kind():
    transformers = pytest.importorskip("transformers")
    from .shrink import shrunk

    config = shrunk(transformers.Gemma3TextConfig)
    assert config.layer_types == ["sliding_attention", "full_attention"] and config.sliding_window == 4
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (32, 4, 2)
