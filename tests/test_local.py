"""Attention within windows and chunks, in blocks: the same numbers as the op's own meaning, at any length."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import subquad
from subquad.ir import OPS, Graph, TensorType, building, cost, evaluate, parse, symbol
from subquad.ir.dims import evaluate as at
from subquad.ir.ops.attention import attention
from subquad.ir.ops.elementwise import div, eq, logical_and
from subquad.ir.ops.graph import size
from subquad.ir.ops.index import arange
from subquad.ir.ops.shape import reshape
from subquad.ir.types import bool_, f32, i64
from subquad.passes import EXACT, Pipeline, local

N = symbol("n")


def site(n, *, h=4, g=2, chunk=None, padded=False, packed=False, sink=False, lead=2, **attrs):
    """A graph of one attention of n tokens; chunk: keys of the own chunk of so many tokens only."""
    types = {"q": (2, h, n, 4), "k": (2, g, n, 4), "v": (2, g, n, 3)}
    with building():
        inputs = {name: OPS["input"](name=name, type=TensorType(f32, t)) for name, t in types.items()}
        mask = None
        if padded:
            inputs["p"] = mask = OPS["input"](name="p", type=TensorType(bool_, (lead, 1, 1, n)))
        if chunk is not None:
            i, j = (reshape(arange(end=n, dtype=i64), shape=s) for s in ((n, 1), (1, n)))
            by = chunk if isinstance(chunk, int) else size(value=chunk, dtype=i64)
            same = eq(div(i, by, rounding_mode="floor"), div(j, by, rounding_mode="floor"))
            same = reshape(same, shape=(1, 1, n, n))
            mask = same if mask is None else logical_and(mask, same)
        if packed:
            inputs["i"] = own = OPS["input"](name="i", type=TensorType(i64, (lead, n)))
            same = eq(reshape(own, shape=(lead, 1, n, 1)), reshape(own, shape=(lead, 1, 1, n)))
            mask = same if mask is None else logical_and(mask, same)
        if sink:
            inputs["s"] = OPS["input"](name="s", type=TensorType(f32, (h,)))
        out = attention(inputs["q"], inputs["k"], inputs["v"], mask, inputs.get("s"), scale=0.5, **attrs)
        return Graph("site", tuple(inputs.values()), (out,))


def arrays(graph, n=None, seed=0):
    """Numbers for its inputs; padding keeps two thirds, and nothing of a stretch; segments are sorted."""
    rng, found = np.random.default_rng(seed), []
    for x in graph.inputs:
        shape = [at(d, {} if n is None else {"n": n}) for d in x.shape]
        if x.dtype is bool_:
            keep = rng.random(shape) > 0.35
            keep[..., : shape[-1] // 2] &= seed % 2 == 0
            found.append(keep)
        elif x.dtype is i64:
            found.append(np.sort(rng.integers(0, 1 + shape[-1] // 8, shape)))
        else:
            found.append(rng.standard_normal(shape))
    return found


def apart(graph, result, n=None, seed=0):
    """The largest difference of two graphs in float64; NaN only where both are."""
    (a,), (b,) = (evaluate(g, arrays(graph, n, seed))[0] for g in (graph, result))
    assert np.array_equal(np.isnan(a), np.isnan(b))
    return np.max(np.abs(np.nan_to_num(a) - np.nan_to_num(b)), initial=0.0)


def rewritten(graph, **options):
    """The graph in blocks; it must have come to that."""
    result, (step,) = Pipeline(local.with_(**options)).run(graph)
    assert [event.applied for event in step.events] == [True] and result is not graph
    assert step.undone is None
    return result


@pytest.mark.parametrize("window", [1, 2, 7, 16, 17, 33])
@pytest.mark.parametrize("causal", [True, False], ids=["past", "both"])
@pytest.mark.parametrize("padded", [False, True], ids=["all", "padded"])
def test_windows_of_every_length(window, causal, padded):
    """Sizes open: one rewritten graph is right for none to many blocks, whole or begun."""
    graph = site(N, window=window, causal=causal, padded=padded)
    result = rewritten(graph, sizes={"n": 4096})
    for n in (1, 2, 15, 16, 17, 32, 70, 97):
        for seed in (0, 1):
            assert apart(graph, result, n, seed) < 1e-12


@pytest.mark.parametrize("chunk", [1, 5, 16])
@pytest.mark.parametrize("causal", [True, False], ids=["past", "both"])
@pytest.mark.parametrize("padded", [False, True], ids=["all", "padded"])
def test_chunks_of_every_length(chunk, causal, padded):
    """The last chunk may be begun only."""
    graph = site(N, chunk=chunk, causal=causal, padded=padded)
    result = rewritten(graph, sizes={"n": 4096})
    for n in (1, 4, 5, 16, 33, 80):
        for seed in (0, 1):
            assert apart(graph, result, n, seed) < 1e-12


def test_a_window_within_chunks():
    """Both hold."""
    graph = site(N, chunk=12, causal=True, window=5)
    result = rewritten(graph, sizes={"n": 4096})
    assert all(apart(graph, result, n) < 1e-12 for n in (1, 12, 13, 50))


@pytest.mark.parametrize("empty", ["zero", "nan", "uniform"])
@pytest.mark.parametrize("form", [{"window": 6}, {"window": 6, "causal": True}, {"chunk": 6, "causal": True},
                                  {"chunk": 6}], ids=str)  # fmt: skip
@pytest.mark.parametrize("lead", [1, 2], ids=["shared", "each"])
def test_rows_without_a_key(form, empty, lead):
    """A query whose window is padded away gives what the op says: 0, NaN, or the mean of all values."""
    graph = site(N, padded=True, empty=empty, lead=lead, **form)
    result = rewritten(graph, sizes={"n": 4096})
    for n in (8, 40, 81):
        assert apart(graph, result, n, seed=1) < 1e-12
    (out,) = evaluate(graph, arrays(graph, 40, 1))[0]
    rows = out[:, :, :6]
    assert {"zero": (rows == 0).all(), "nan": np.isnan(rows).all(), "uniform": rows.any()}[empty]


@given(
    window=st.integers(1, 40), n=st.integers(1, 150), causal=st.booleans(), padded=st.booleans(),
    packed=st.booleans(), lead=st.sampled_from([1, 2]), sink=st.booleans(),
    softcap=st.sampled_from([None, 3.0]), empty=st.sampled_from(["zero", "nan", "uniform"]),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]), chunk=st.sampled_from([None, 3, 20]),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_any_attention(window, n, heads, seed, **form):
    """Every attribute of the op beside every other."""
    (h, g) = heads
    graph = site(N, h=h, g=g, window=window, **form)
    assert apart(graph, rewritten(graph, sizes={"n": 1 << 14}), n, seed) < 1e-12


def test_work_grows_with_the_tokens():
    """Twice the tokens, twice the FLOPs; and no value has n times n elements."""
    graph = rewritten(site(N, window=64, causal=True, padded=True), sizes={"n": 4096})
    one, two = (at(cost(graph).flops, {"n": n}) for n in (1 << 14, 1 << 15))
    assert two / one == pytest.approx(2, rel=0.01)
    sizes = [at(t.size, {"n": 1 << 14}) for op in graph.ops() for t in op.types]
    assert max(sizes) < (1 << 14) ** 2 / 8


def masked(graph, dtype=bool_):
    """The attention of a graph with a mask of any kind that a caller gives."""
    op = graph.outputs[0].op
    with building():
        mask = OPS["input"](name="mask", type=TensorType(dtype, (2, 1, 512, 512)))
        return Graph("masked", (*graph.inputs, mask), (attention(*op.inputs[:3], mask, **op.attrs),))


def biased(graph):
    """... that adds to the scores."""
    return masked(graph, f32)


REFUSED = {
    "short": (site(96, window=64, causal=True), "too few"),
    "offset": (site(512, window=8, causal=True, offset=3), "another position"),
    "bias": (biased(site(512, window=8)), "adds to the scores"),
    "any": (masked(site(512, window=8)), "depends on the query"),
    "open_chunks": (site(512, chunk=N + 1), "fixed number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_why(case):
    """And leave the graph as it is."""
    graph, reason = REFUSED[case]
    result, (step,) = Pipeline(local).run(graph)
    assert result is graph
    (event,) = step.refused
    assert reason in event.result.reason


def test_plain_attention_is_no_matter():
    """Without a window there is nothing to say."""
    for graph in (site(512), site(512, causal=True), site(512, padded=True)):
        result, (step,) = Pipeline(local).run(graph)
        assert result is graph and step.events == ()


def test_once_is_enough():
    """The pipeline settles, and what it made can be written and read."""
    graph = site(N, window=10, causal=True, padded=True)
    result = EXACT(graph)
    assert EXACT(result) is result
    assert apart(graph, parse(str(result)), 60) < 1e-12


# ---- in a model ----------------------------------------------------------------------------------


class Windowed(torch.nn.Module):
    """Attention to the last 24 tokens that are no padding; other rows as a finite minus infinity has it."""

    def forward(self, q, k, v, keep):
        i = torch.arange(q.shape[2])
        near = (i[None] <= i[:, None]) & (i[:, None] - i[None] < 24)
        scores = q @ k.repeat_interleave(2, 1).mT * 0.5
        scores = scores.masked_fill(~(near & keep[:, None, None]), torch.finfo(q.dtype).min)
        return scores.softmax(-1) @ v.repeat_interleave(2, 1)


class Retention(torch.nn.Module):
    """Multi-scale retention (arXiv:2307.08621) as a square."""

    def forward(self, q, k, v, keep):
        i = torch.arange(q.shape[2])
        gamma = 1 - torch.exp2(-5.0 - torch.arange(q.shape[1]))
        gap = i[:, None] - i[None]
        decay = torch.where(gap >= 0, gamma[:, None, None] ** gap, 0.0)
        k = k.repeat_interleave(2, 1) * keep[:, None, :, None]
        return (q @ k.mT * decay * 0.5) @ v.repeat_interleave(2, 1)


@pytest.mark.parametrize(
    ("model", "rule"), [(Windowed(), "window_in_blocks"), (Retention(), "product_first")]
)
def test_models_become_linear_and_stay_trainable(model, rule):
    """Values and gradients in f32, against the model's own in f64; the log shows the rule."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, 300, 8, requires_grad=True) for h in (4, 2, 2))
    keep = torch.ones(2, 300, dtype=torch.bool)
    keep[1, :100] = False  # rows without any key
    fast = subquad.optimize(model, (q, k, v, keep))
    assert fast.log.applied()[rule] == 1 and not any(step.undone for step in fast.log.steps)
    assert rule in str(fast.log)
    weigh = torch.randn(2, 4, 300, 8)
    found = [fast(q, k, v, keep)]
    found += torch.autograd.grad((found[0] * weigh).sum(), (q, k, v))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wanted = [model(*exact, keep)]
    wanted += torch.autograd.grad((wanted[0] * weigh.double()).sum(), exact)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max())
