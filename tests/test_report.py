"""The log: what it counts, what it answers, and that its text stays inside its columns."""

import json

import pytest

import subquad.ir as ir
from subquad.passes import Site, Step
from subquad.report import Gain, PassLog
from subquad.tables import count

GRAPH = """
graph g(%x: f32[b,8,16]) {
  %0 = permute(%x, dims=(0, 2, 1)) : f32[b,16,8]
  %1 = permute(%0, dims=(0, 2, 1)) : f32[b,8,16]
  %2 = matmul(%1, %0) : f32[b,8,8]
  return %2
}
"""


@ir.rule(lambda x, *, a, b: ir.OPS["permute"](ir.OPS["permute"](x, dims=a), dims=b))
def permute_of_permute(x, *, a, b):
    return x


@ir.rule(lambda x, y: ir.OPS["matmul"](x, y))
def never(x, y):
    return ir.No("the left operand is not a permute")


@pytest.fixture
def log() -> PassLog:
    before = ir.parse(GRAPH)
    for op in before.ops():
        op.source = f"layers.0.{op.name} (model.py:7)"
    with ir.journal() as journal:
        after = ir.rewrite(before, [permute_of_permute, never])
    steps = [
        Step("canonicalize", before, after, tuple(journal.events), 0.01, error=3e-8),
        Step("fuse", after, after, (), 0.01, undone="rule 'bad' changed output 0 by 0.5", error=0.5),
    ]
    b = ir.symbol("b")
    gain = Gain(
        site="layers.0.attn",
        source="model.py:7",
        recipe="elu1",
        before=ir.Cost(1000 * b * b, 10 * b),
        after=ir.Cost(1000 * b, 10 * b),
        call='subquad.optimize(model, args, attention="elu1")',
    )
    return PassLog(steps, [gain, gain], sizes={"b": 4})


def test_the_text_says_what_happened(log):
    text = str(log)
    for piece in ("canonicalize", "3 -> 2", "permute_of_permute 1", "3.0e-08", "UNDONE",
                  "the left operand is not a permute", "layers.0.matmul (model.py:7)",
                  "rule 'bad' changed output 0", "elu1", "0.25x", "b = 4", "and 1 like it",
                  'attention="elu1"'):  # fmt: skip
        assert piece in text, f"{piece!r} is not in\n{text}"
    assert "\x1b" not in text


def test_no_figure_is_lost_in_a_narrow_terminal(log):
    text = log.text(20)
    assert all(figure in text for figure in ("3 -> 2", "1.00x", "3.0e-08", "10.0", "16 K -> 4 K"))


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_text_keeps_its_width(log, width):
    lines = log.text(width).splitlines()
    assert max(map(len, lines)) <= width
    assert not any(line.endswith(" ") for line in lines)


def test_symbolic_costs_on_request(log):
    assert "2048*b" in log.text(symbolic=True)
    assert "2048*b" not in str(log)


def test_sizes_may_be_unknown(log):
    assert "?" in str(PassLog(log.steps, log.gains))


def test_why(log):
    (refusal,) = log.why("never")
    assert refusal.reason == "the left operand is not a permute"
    assert "model.py:7" in str(refusal)
    assert log.why("layers.0") == log.why("matmul") == log.why("Canonicalize") == (refusal,)
    assert log.why("attention") == ()
    assert str(log.why("attention")).startswith("no softmax in this model")
    assert str(log.why("nothing of this name")) == "no refusals"


def test_diff(log):
    text = log.diff("canonicalize")
    assert text.splitlines()[0] == "canonicalize: 2 ops removed, 1 added"
    assert "- %1 = permute(%0, dims=(0, 2, 1)) : f32[b,8,16]" in text
    assert "// layers.0.permute (model.py:7)" in text
    assert log.diff(0) == text == log.diff(log.steps[0])
    with pytest.raises(ir.IRError, match="it has: canonicalize, fuse"):
        log.diff("fold")


def test_an_undone_step_does_not_count_as_error(log):
    assert log.error == 3e-8


def test_json(log):
    data = json.loads(json.dumps(log.to_dict()))
    first = data["steps"][0]
    assert first["applied"] == {"permute_of_permute": 1}
    assert first["refused"][0]["rule"] == "never"
    assert first["before"]["flops"] == 2048 * 4
    assert data["gains"][0]["before"]["flops_symbolic"] == "1000*b*b"
    assert data["steps"][1]["undone"]


def test_an_empty_log():
    assert "pass" in str(PassLog([]))
    assert PassLog([]).error is None


COUNTS = [(0, "0 "), (999, "999 "), (1500, "1.5 K"), (2.5e12, "2.5 T"), (1e16, "10 P")]


@pytest.mark.parametrize("n, text", COUNTS)
def test_count(n, text):
    assert count(n) == text


def test_no_gain_is_said(log):
    loss = Gain("layers.0", "", "elu1", ir.Cost(10, 10), ir.Cost(20, 20), "call")
    site = Site("layers.0", "", "attention", log.steps[0].after.outputs[0].op, "attention")
    assert "nothing: no recipe" in str(PassLog(log.steps, [loss]))
    assert "nothing: no recipe" in str(PassLog(log.steps, sites=[site]))
    assert "nothing: no recipe" not in str(PassLog(log.steps))
