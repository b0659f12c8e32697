"""compare: errors against float64, verdicts, scaling. bisect: one application, one file."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import subquad.ir as ir
from subquad import optimize
from subquad.comparison import Difference, leaves
from subquad.harness import bisect, compare
from subquad.measure import exponent, flops, peak_memory, times
from subquad.passes.pipeline import PASSES, Pipeline, pass_
from subquad.reference import grouped_mm


class Softmax(nn.Module):
    """Attention with every score in memory."""

    def forward(self, x):
        return {"out": torch.softmax(x @ x.mT, -1) @ x, "again": [x + 1]}


class Fused(nn.Module):
    """The same through one kernel."""

    def forward(self, x):
        out = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], scale=1.0)[:, 0]
        return {"out": out, "again": [x + 1]}


class Off(nn.Module):
    """The same, but for one element."""

    def forward(self, x):
        result = Fused()(x)
        result["out"][0, 0, 0] += 0.5
        return result


@pytest.fixture
def x():
    return torch.randn(2, 96, 32, generator=torch.Generator().manual_seed(0)) / 4


# ---- errors --------------------------------------------------------------------------------------


def test_two_spellings_of_one_model(x):
    comparison = compare(Softmax(), Fused(), (x,), repeats=0)
    assert [o.name for o in comparison.outputs] == ["out", "again[0]"]
    assert comparison.reference == "float64"
    assert 0 < comparison.outputs[0].original.max_abs < 1e-5
    assert comparison.outputs[0].optimized.cosine == pytest.approx(1)
    comparison.assert_close()
    assert "again[0]" in str(comparison)


def test_a_wrong_output_is_named(x):
    comparison = compare(Softmax(), Off(), (x,), repeats=0)
    with pytest.raises(AssertionError) as caught:
        comparison.assert_close()
    message = str(caught.value)
    assert "1 of 2 outputs differ" in message
    assert "out float32[2,96,32]: max error 0.5" in message
    assert "bisect" in message
    assert "WRONG" in str(comparison)
    comparison.assert_close(bound=0.6)


def test_an_approximation_is_told_apart(x):
    off = Off()
    off.sites = [type("Site", (), {"decision": "elu1"})()]
    with pytest.raises(AssertionError, match=r"assert_close\(bound"):
        compare(Softmax(), off, (x,), repeats=0).assert_close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_held_to_its_own_bound(x, dtype):
    comparison = compare(Softmax(), Fused(), (x.to(dtype),), repeats=0)
    comparison.assert_close()
    assert comparison.outputs[0].original.max_abs > 1e-5


def test_the_reference_widens_casts_inside(x):
    class Casts(nn.Module):
        def forward(self, x):
            return torch.softmax((x @ x.mT).to(torch.bfloat16), -1, dtype=torch.float32) @ x

    (output,) = compare(Casts(), Casts(), (x,), repeats=0).outputs
    assert output.original.max_abs > 1e-3  # bfloat16 in the model, none in the reference


def test_the_reference_widens_what_a_model_makes(x):
    weight = torch.full((32, 32), 1 / 3)

    def model(x):
        made = torch.zeros(32, 32)
        made[0] = 1 / 3
        return F.linear(x, weight) + x @ made, made[:1].mul_(2.0)

    comparison = compare(model, model, (x,), repeats=0)
    assert comparison.reference == "float64"
    assert 0 < comparison.outputs[0].original.max_abs < 1e-5
    assert comparison.outputs[1].original.max_abs < 1e-7


def test_a_model_that_does_not_run_in_float64(x):
    def model(x):
        if x.dtype is not torch.float32:
            raise TypeError("float32 only")
        return x * 2

    comparison = compare(model, model, (x,), repeats=0)
    assert "does not run in float64: float32 only" in comparison.reference
    comparison.assert_close()


def test_other_structure_is_an_error(x):
    with pytest.raises(ir.SubquadError, match="different structures"):
        compare(Softmax(), nn.Identity(), (x,), repeats=0)


def test_inputs_are_not_changed(x):
    kept = x.clone()
    compare(lambda x: x.add_(1), lambda x: x.add_(1), (x,), repeats=0)
    assert torch.equal(x, kept)


def test_difference():
    inf, nan = math.inf, math.nan
    a = torch.tensor([1.0, inf, nan])
    assert Difference.of(a, a).max_abs == 0
    assert Difference.of(torch.tensor([1.0, nan, inf]), a).max_abs == inf
    assert Difference.of(torch.tensor([1.5, inf, nan]), a).max_abs == 0.5
    assert Difference.of(torch.empty(0), torch.empty(0)).max_abs == 0
    assert Difference.of(torch.zeros(3), torch.zeros(3)).relative == 0
    assert Difference.of(torch.tensor([True]), torch.tensor([False])).max_abs == 1
    with pytest.raises(ir.SubquadError, match="shape"):
        Difference.of(torch.zeros(2), torch.zeros(1))


def test_leaves():
    named = leaves({"a": (torch.zeros(1), None), "b": {"c": 3}})
    assert list(named) == ["a[0]", "a[1]", "b.c"]
    assert list(leaves(torch.zeros(1))) == ["output"]


# ---- the pytest fixture --------------------------------------------------------------------------


def test_compile_and_compare(compile_and_compare, x):
    fast, comparison = compile_and_compare(Softmax(), (x,))
    assert torch.equal(fast(x)["again"][0], x + 1)
    assert comparison.exact and not comparison.sites


def test_compile_and_compare_reports_each_site(compile_and_compare, x):
    _, comparison = compile_and_compare(Fused(), (x,), attention="elu1", bound=2.0)
    (site,) = comparison.sites
    assert site.recipe == "elu1" and 0 < site.difference.max_abs < 2
    assert not comparison.exact and "recipe against exact attention" in str(comparison)
    with pytest.raises(AssertionError, match="say what you accept"):
        compile_and_compare(Fused(), (x,), attention="elu1")


# ---- time, memory, work --------------------------------------------------------------------------


def test_costs(x):
    comparison = compare(Softmax(), Fused(), (x,), repeats=2)
    assert len(comparison.time.before) == len(comparison.time.after) == 2
    assert comparison.flops == (2 * 2 * 2 * 96 * 96 * 32,) * 2
    assert comparison.memory[0] >= 2 * 96 * 96 * 4
    assert comparison.rate > 1e8
    assert "matmul rate" in str(comparison)


def test_peak_memory_counts_what_is_alive_at_once():
    def twice():
        for _ in range(2):
            torch.ones(1 << 20).sum()

    assert 4 << 20 <= peak_memory(twice) < 5 << 20


def test_flops_knows_attention_on_a_cpu():
    q = torch.randn(1, 2, 8, 4)
    assert flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * 2 * 2 * 8 * 8 * 4
    assert flops(lambda: q + q) is None


def test_times_are_pairs():
    calls = []
    times(lambda: calls.append("a"), lambda: calls.append("b"), repeats=2)
    assert calls == ["a", "b", "a", "b", "b", "a"]


def test_exponent():
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert exponent([1], [1]) is None
    assert exponent([2, 2], [1, 3]) is None


def test_scaling(x, tmp_path):
    said = []
    comparison = compare(
        Softmax(), Fused(), (x,), lengths=[64, 128, 256],
        make_args=lambda n: (torch.randn(1, n, 32),), repeats=1, progress=said.append,
    )  # fmt: skip
    assert [row.length for row in comparison.rows] == [64, 128, 256]
    fit = comparison.exponents()
    assert fit["memory original"] > 1.5 > fit["memory optimized"]
    assert comparison.exponents(start=256)["time original"] is None
    assert "exponent" in str(comparison)
    assert "length 256" in said
    pytest.importorskip("matplotlib")
    assert comparison.plot(tmp_path / "scaling.png").stat().st_size > 1000


def test_a_model_over_the_limit_is_left_out(x):
    comparison = compare(
        Softmax(), Fused(), (x,), lengths=[32, 64], make_args=lambda n: (torch.randn(1, n, 32),),
        repeats=1, limit=0.0,
    )  # fmt: skip
    assert comparison.rows[0].time.before and not comparison.rows[1].time.before
    assert comparison.rows[1].memory[0] is None
    assert str(comparison)


def test_lengths_need_arguments(x):
    with pytest.raises(ir.SubquadError, match="make_args"):
        compare(Softmax(), Fused(), (x,), lengths=[8])


def test_plot_needs_lengths(x):
    with pytest.raises(ir.SubquadError, match="lengths"):
        compare(Softmax(), Fused(), (x,), repeats=0).plot("nowhere.png")


# ---- bisect --------------------------------------------------------------------------------------

exp, neg, log = (ir.OPS[name] for name in ("exp", "neg", "log"))


@ir.rule(lambda x: neg(neg(x)))
def neg_of_neg(x):
    return x


@ir.rule(lambda x: exp(neg(x)))
def wrong_on_wide_rows(x):
    """Right for most, wrong for one: what a missing guard looks like."""
    return 1 / exp(x) if x.shape[-1] != 7 else exp(x)


@pytest.fixture
def planted():
    """A pass with a right rule and a wrong one; the registry is as before afterwards."""
    known = dict(PASSES)

    @pass_
    def planted_pass(graph: ir.Graph) -> ir.Graph:
        """Two rules."""
        return ir.rewrite(graph, [neg_of_neg, wrong_on_wide_rows])

    yield planted_pass
    PASSES.clear()
    PASSES.update(known)


GRAPH = """
graph g(%x: f32[n,4], %y: f32[n,7]) {
  %0 = neg(%x) : f32[n,4]
  %1 = neg(%0) : f32[n,4]
  %2 = exp(%0) : f32[n,4]
  %3 = exp(%1) : f32[n,4]
  %4 = neg(%y) : f32[n,7]
  %5 = exp(%4) : f32[n,7]
  %6 = neg(%5) : f32[n,7]
  return %2, %3, %6
}
"""


def test_bisect_ends_at_one_application(planted, tmp_path):
    data = [np.linspace(-1, 1, 12).reshape(3, 4), np.linspace(-1, 1, 21).reshape(3, 7)]
    path = tmp_path / "guilty.ir"
    culprit = bisect(ir.parse(GRAPH), data, pipeline=Pipeline(planted), path=path)
    assert culprit.rule == "wrong_on_wide_rows"
    assert culprit.error > 0.1 and culprit.random_error > 0.1
    before, after = ir.parse_many(path.read_text())
    assert [op.name for op in before.ops()] == ["input", "neg", "exp"]
    assert [op.name for op in after.ops()] == ["input", "exp"]
    assert ir.isomorphic(before, culprit.before) and ir.isomorphic(after, culprit.after)
    assert "wrong_on_wide_rows" in str(culprit)
    assert [p.name for p in tmp_path.iterdir()] == ["guilty.ir"]


def test_bisect_finds_nothing_where_nothing_is_wrong(planted, tmp_path):
    graph = ir.parse(GRAPH)
    graph = ir.Graph("g", graph.inputs, graph.outputs[:2], facts=graph.facts)
    data = [np.ones((3, 4)), np.ones((3, 7))]
    assert bisect(graph, data, pipeline=Pipeline(planted), path=tmp_path / "x.ir") is None
    assert not list(tmp_path.iterdir())


def test_bisect_names_a_pass_without_rules(planted, tmp_path):
    @pass_
    def planted_sign(graph: ir.Graph) -> ir.Graph:
        """Wrong, and no rule to blame."""
        return ir.replace(graph, lambda op, v: [exp(neg(v[0]))] if op.name == "exp" else None)

    data = [np.ones((3, 4)), np.ones((3, 7))]
    pipeline = Pipeline(planted_sign)
    culprit = bisect(ir.parse(GRAPH), data, pipeline=pipeline, path=tmp_path / "x.ir")
    assert (culprit.step, culprit.rule) == ("planted_sign", "")
    assert "guilty: pass 'planted_sign'" in str(culprit)


def test_bisect_on_a_model(planted, tmp_path):
    class Net(nn.Module):
        def forward(self, x, y):
            return torch.exp(-x), torch.exp(-y)

    args = torch.randn(3, 4), torch.randn(3, 7)
    culprit = bisect(Net(), args, pipeline=Pipeline(planted), path=tmp_path / "x.ir")
    assert culprit.rule == "wrong_on_wide_rows" and "test_harness.py" in culprit.source
    assert bisect(Net(), args, path=tmp_path / "none.ir") is None


def test_the_callers_random_numbers_go_on_undisturbed():
    model, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    compare(model, optimize(model, (x,)), (x,), repeats=0)
    assert torch.equal(torch.rand(3), wanted)


def test_grouped_products_have_a_float64_run():
    """Each row times the matrix of its group, an empty group between; other forms are refused by shape."""
    rows, matrices, ends = torch.randn(7, 4), torch.randn(3, 4, 5), torch.tensor([2, 2, 7])
    group = torch.tensor([0, 0, 2, 2, 2, 2, 2])
    wanted = torch.einsum("nk,nkm->nm", rows.double(), matrices[group].double())
    torch.testing.assert_close(grouped_mm(rows.double(), matrices.double(), ends), wanted)
    with pytest.raises(NotImplementedError, match="rows"):
        grouped_mm(matrices, matrices)
