"""Recipes over few tokens, where the contract does not reach: limits, options, known sizes, refusals."""

import numpy as np
import pytest
import torch

from subquad.backends import backend
from subquad.ir import OPS, Graph, IRError, RecipeError, TensorType, building, evaluate, symbol
from subquad.ir.types import f64
from subquad.learned import initial
from subquad.passes import recipe_named
from subquad.passes.recipes import Mixing

SCALE = 0.4
RNG = np.random.default_rng(0)


def site_graph(spec, *, n=24, m=None, b=2, h=4, g=2, d=4, e=5, tokens=0, **where):
    """A recipe alone on q, k, v and, where their channels are given, the tokens."""
    m = n if m is None else m
    shapes = {"q": (b, h, n, d), "k": (b, g, m, d), "v": (b, g, m, e), "tokens": (b, n, tokens)}
    with building():
        inputs = {
            name: OPS["input"](name=name, type=TensorType(f64, shape))
            for name, shape in shapes.items()
            if name != "tokens" or tokens
        }
        site = Mixing(SCALE, tokens=inputs.get("tokens"), **{"causal": False, "index": 1, **where})
        out = recipe_named(spec)(inputs["q"], inputs["k"], inputs["v"], site)
        return Graph("site", tuple(inputs.values()), (out,))


def operands(graph):
    """Gaussian inputs of a graph of known sizes."""
    return [RNG.standard_normal(x.shape) for x in graph.inputs]


def run(graph, given, learned=None):
    """By the oracle; weights as they start where none are given."""
    learned = {**{name: x.detach().numpy() for name, x in initial(graph, {}).items()}, **(learned or {})}
    (out,), _ = evaluate(graph, given, learned)
    return out


def softmax_attention(q, k, v, *_, scale=SCALE):
    """What the recipes stand in for."""
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], 1) for x in (k, v))
    weights = np.exp(scale * q @ np.swapaxes(k, -1, -2))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize(
    "spec",
    [
        "linformer(size=24)", "linformer(size=99)", "kinetics(size=4,pages=6)",
        "kinetics(size=32,pages=1,skip=2)", "pisa(size=4,density=1.0)", "pisa(size=5,count=5,order=0)",
        "nystrom(landmarks=99,iterations=25)",
    ],
)  # fmt: skip
def test_with_room_for_all_tokens_they_are_the_softmax(spec):
    """As many rows, pages or blocks as there are keys, or landmarks as tokens and steps enough."""
    graph = site_graph(spec)
    given = operands(graph)
    np.testing.assert_allclose(run(graph, given), softmax_attention(*given), atol=1e-10)


def test_agents_start_as_two_softmaxes_and_their_number_follows_the_grid():
    """One agent for all: the softmax of the mean query, for every token."""
    graph = site_graph("agent(agents=1)", n=25, grid=(4, 6), before=1)
    q, k, v = operands(graph)
    one = softmax_attention(q[:, :, 1:].mean(2, keepdims=True), k, v)
    np.testing.assert_allclose(run(graph, [q, k, v]), np.repeat(one, 25, 2), atol=1e-10)


def test_nystrom_without_a_convolution_learns_nothing():
    """And is what it starts as with one."""
    with_one, without = (site_graph(f"nystrom(landmarks=6,conv={c})") for c in (33, 0))
    assert set(initial(with_one, {})) == {"site.conv"} and not initial(without, {})
    given = operands(without)
    np.testing.assert_allclose(run(without, given), run(with_one, given), atol=1e-12)


def test_linformer_starts_as_means_of_segments():
    """Of the maximal length, whatever the length is; lengths of queries and keys may differ."""
    graph = site_graph("linformer(size=4,length=30)", n=7, m=21)
    start = {name: x.detach().numpy() for name, x in initial(graph, {}).items()}
    edges = [i * 30 // 4 for i in range(5)], [-(-i * 30 // 4) for i in range(5)]
    for w in start.values():
        for i in range(4):
            row = np.zeros(30)
            row[edges[0][i] : edges[1][i + 1]] = 1 / (edges[1][i + 1] - edges[0][i])
            np.testing.assert_allclose(w[:, i], np.broadcast_to(row, w[:, i].shape), atol=1e-12)
    q, k, v = operands(graph)
    few_k, few_v = (start[f"site.{name}"][:, :, :21] @ x for name, x in (("E", k), ("F", v)))
    np.testing.assert_allclose(run(graph, [q, k, v]), softmax_attention(q, few_k, few_v), atol=1e-10)


def test_pisa_takes_a_part_of_all_blocks_where_their_number_is_known():
    """A quarter of six blocks is two; count= says the same."""
    part, counted = site_graph("pisa(size=4,density=0.3)"), site_graph("pisa(size=4,count=2)")
    given = operands(part)
    np.testing.assert_allclose(run(part, given), run(counted, given), atol=0)


def test_zeroi2v_shifts_heads_across_the_frames_of_a_batch():
    """Six pictures are two videos of three frames; edges keep their own keys and values."""
    graph = site_graph("zeroi2v(frames=3)", b=6, n=5, h=4, g=4, grid=(2, 2), before=1)
    q, k, v = operands(graph)
    near_k, near_v = k.copy(), v.copy()
    for picture in range(6):
        t = picture % 3
        for head, other in ((0, t - 1), (1, t + 1)):
            at = picture - t + other if 0 <= other < 3 else picture
            near_k[picture, head], near_v[picture, head] = k[at, head], v[at, head]
    expected = softmax_attention(q, near_k, near_v)
    np.testing.assert_allclose(run(graph, [q, k, v]), expected, atol=1e-12)
    assert np.abs(expected - softmax_attention(q, k, v)).max() > 0.1


def test_activator_mixes_no_tokens():
    """Another token changes nothing; the token itself does."""
    graph = site_graph("activator(accept_no_mixing=true)", tokens=6)
    given = operands(graph)
    learned = {name: RNG.standard_normal(tuple(x.shape)) for name, x in initial(graph, {}).items()}
    before = run(graph, given, learned)
    given[3][:, 7] += 1
    moved = np.abs(run(graph, given, learned) - before).max((0, 1, 3))
    assert moved[7] > 1e-3 and not np.delete(moved, 7).any()


GRID = {"n": 24, "grid": (4, 6)}
TOKENS = {**GRID, "tokens": 32}


@pytest.mark.parametrize(
    ("spec", "where", "reason"),
    [
        ("agent(agents=50)", GRID, "square"),
        ("agent", {"n": 24, "grid": (2, 3, 4)}, "height, width"),
        ("agent", {"n": symbol("n") * 6, "grid": (symbol("n"), 6)}, "known sizes"),
        ("agent_sd(agents=5)", TOKENS, "square"),
        ("nystrom(landmarks=0)", {}, "at least one landmark"),
        ("linformer", {"n": symbol("n")}, "length="),
        ("linformer(length=20)", {}, "more than length=20"),
        ("pisa", {"n": symbol("n")}, "count="),
        ("pisa(density=1.5)", {}, "at most 1"),
        ("pisa(order=2)", {}, "order is 0 or 1"),
        ("kinetics(skip=2)", {"count": 3}, "the first skip=2 attentions stay exact, and this is number 2"),
        ("kinetics(rest=first)", {}, "'zeroth'"),
        ("hsm_ssd(states=0)", TOKENS, "at least one"),
        ("zeroi2v", GRID, "frames, height, width"),
        ("zeroi2v", {"n": 24, "grid": (4, 2, 3), "g": 1}, "2 parts of 1 / 1"),
        ("zeroi2v(frames=2)", {**GRID, "b": 3}, "videos of 2 frames"),
        ("zeroi2v(frames=2)", {**GRID, "b": symbol("b")}, "videos of 2 frames"),
        ("activator", {"tokens": 6}, "mixes no tokens"),
        ("favit", TOKENS, "a multiple of 16 times the heads"),
        ("favit(sr=3)", {**TOKENS, "h": 2, "d": 16, "e": 16}, "shrink 3-fold"),
        ("favit", {**TOKENS, "h": 2, "d": 16, "e": 16}, "too small"),
        ("favit(pooling=max)", {**TOKENS, "h": 2, "d": 16, "e": 16}, "'mean' or 'compat'"),
    ],
)  # fmt: skip
def test_what_they_cannot_do_they_refuse(spec, where, reason):
    """With what would have to be said instead."""
    with pytest.raises(RecipeError, match=reason):
        site_graph(spec, **where)


def test_more_keys_than_linformer_was_made_for_are_an_error():
    """Where the length is not known before, when they come."""
    graph = site_graph("linformer(size=4,length=20)", n=symbol("n"))
    learned = {name: x.detach() for name, x in initial(graph, {}).items()}
    arrays = {name: x.numpy() for name, x in learned.items()}
    fits, beyond = (
        [RNG.standard_normal((2, heads, n, size)) for heads, size in ((4, 4), (2, 4), (2, 5))]
        for n in (20, 21)
    )
    assert np.isfinite(evaluate(graph, fits, arrays)[0][0]).all()
    with pytest.raises(IRError, match="n = 21, given 20"):
        evaluate(graph, beyond, arrays)
    with pytest.raises(RuntimeError, match="21"):
        backend("eager").compile(graph)([torch.from_numpy(x) for x in beyond], learned)
