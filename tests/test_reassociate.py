"""Products with decays between them: every spelling of retention and of state space duals is a recurrence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subquad.ir import OPS, Graph, No, TensorType, building, evaluate, symbol
from subquad.ir.dims import evaluate as at
from subquad.ir.ops.elementwise import (
    abs_,
    cast,
    div,
    exp,
    exp2,
    log,
    maximum,
    mul,
    pow,
    sigmoid,
    sqrt,
    where,
)
from subquad.ir.ops.index import arange
from subquad.ir.ops.linear import matmul
from subquad.ir.ops.nonlinear import clamp
from subquad.ir.ops.reduce import cumsum, sum_
from subquad.ir.ops.shape import expand, permute, reshape, tril
from subquad.ir.types import bool_, f32, i64
from subquad.passes import Pipeline, canonicalize, fold, reassociate

B, H, N, D = 2, 3, symbol("n"), 4
LOW = float("-inf")


def swap(x):
    return permute(x, dims=(*range(x.rank - 2), x.rank - 1, x.rank - 2))


def distance():
    """i - j."""
    i = arange(end=N, dtype=i64)
    return reshape(i, shape=(N, 1)) - reshape(i, shape=(1, N))


def past():
    return OPS["ge"](distance(), 0)


def const(x, dtype=f32):
    return OPS["const"](value=x, dtype=dtype)


def lower():
    return tril(expand(const(1.0), size=(N, N)))


def per_head(x):
    return reshape(x, shape=(1, H, 1, 1))


def slopes():
    """RetNet's 1 - 2^(-5 - h), [h]."""
    return 1.0 - exp2(-5.0 - cast(arange(end=H, dtype=i64), dtype=f32))


def apart(g):
    """g_i - g_j of g [b, h, n]."""
    return reshape(g, shape=(B, H, N, 1)) - reshape(g, shape=(B, H, 1, N))


def segsum(a):
    """Mamba-2's: sums of a [b, h, n] over j < t <= i, -inf elsewhere."""
    ones = expand(const(True, bool_), size=(N, N))
    x = expand(reshape(a, shape=(B, H, N, 1)), size=(B, H, N, N))
    x = cumsum(where(tril(ones, diagonal=-1), x, 0.0), dim=2)
    return where(tril(ones), x, LOW)


def masked(x):
    return where(past(), x, 0.0)


DECAYS = {
    "number": lambda a, p: masked(pow(const(0.9), distance())),
    "clamped": lambda a, p: lower() * pow(const(0.9), clamp(distance(), min=0)),
    "clamped late": lambda a, p: masked(pow(const(0.9), maximum(distance(), 0))),
    "absolute": lambda a, p: masked(pow(const(0.9), abs_(distance()))),
    "as floats": lambda a, p: tril(pow(const(0.9), cast(distance(), dtype=f32))),
    "retnet powers": lambda a, p: masked(pow(per_head(slopes()), distance())),
    "retnet exponentials": lambda a, p: masked(exp(cast(distance(), dtype=f32) * per_head(log(slopes())))),
    "before the exponential": lambda a, p: exp(where(past(), distance() * per_head(log(slopes())), LOW)),
    "learned gates": lambda a, p: masked(pow(per_head(sigmoid(p)), distance())),
    "learned exponent": lambda a, p: masked(exp(distance() * per_head(-exp(p)))),
    "running sums": lambda a, p: masked(exp(apart(cumsum(a, dim=2)))),
    "masked running sums": lambda a, p: exp(where(past(), apart(cumsum(a, dim=2)), LOW)),
    "any differences": lambda a, p: masked(exp(apart(a))),
    "segsum": lambda a, p: exp(segsum(a)),
    "by the mean": lambda a, p: (
        masked(pow(const(0.9), distance()))
        / sqrt(sum_(masked(pow(const(0.9), distance())), dim=1, keepdim=True))
    ),
    "of keys too": lambda a, p: exp(segsum(a)) * reshape(sigmoid(a), shape=(B, H, 1, N)),
    "two": lambda a, p: exp(segsum(a)) * masked(pow(per_head(slopes()), distance())),
    "base 2": lambda a, p: exp2(where(past(), apart(cumsum(a, dim=2)), LOW)),
    "halved": lambda a, p: masked(exp(apart(cumsum(a, dim=2)) * 0.5 - distance() * 0.1)),
}
"""Factors [.., n, n] of a [b, h, n] (log decays) and p [h], each 0 above the diagonal."""


def graph_of(function, normalize=None, first=False):
    """(q k^T * D) v as a graph, perhaps normalised by its row sums."""
    types = {"q": (B, H, N, D), "k": (B, H, N, D), "v": (B, H, N, 3), "a": (B, H, N), "p": (H,)}
    with building():
        x = {name: OPS["input"](name=name, type=TensorType(f32, t)) for name, t in types.items()}
        q, k = (exp(x[name]) if normalize else x[name] for name in "qk")
        scores, factor = matmul(q, swap(k)) * 0.5, function(x["a"], x["p"])
        weights = mul(factor, scores) if first else mul(scores, factor)
        if normalize:
            weights = div(weights, sum_(weights, dim=3, keepdim=True) + 1e-6)
        return Graph("retention", tuple(x.values()), (matmul(weights, x["v"]),))


def arrays(graph, n, seed=0):
    rng = np.random.default_rng(seed)
    found = [rng.standard_normal([at(d, {"n": n}) for d in x.shape]) for x in graph.inputs]
    found[3] = -np.abs(found[3]) * 0.3
    return found


def rewritten(graph):
    result, steps = Pipeline(canonicalize, fold, reassociate.with_(sizes={"n": 4096}), canonicalize).run(
        graph
    )
    assert not any(step.undone for step in steps)
    return result, steps[-2].events


def names(graph):
    return [op.name for op in graph.ops()]


def error(graph, result, n, seed=0):
    (a,), (b,) = (evaluate(g, arrays(graph, n, seed))[0] for g in (graph, result))
    return np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(a)))


@pytest.mark.parametrize("first", [False, True], ids=["scores * D", "D * scores"])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("case", DECAYS)
def test_decays_are_recurrences(case, normalize, first):
    """In linear time, with the same numbers."""
    graph = graph_of(DECAYS[case], normalize, first)
    result, _ = rewritten(graph)
    assert "linear_attention" in names(result) and "softmax" not in names(result)
    assert all(error(graph, result, n) < 1e-11 for n in (1, 2, 7, 70))


@pytest.mark.parametrize("gap", [abs_, lambda x: x], ids=["magnitude", "signed"])
def test_a_mask_may_come_later(gap):
    """A decay of distances both ways is one of the past where another step masks the future."""
    with building():
        x = [OPS["input"](name=c, type=TensorType(f32, (B, H, N, D))) for c in "qkv"]
        x.append(OPS["input"](name="a", type=TensorType(f32, (B, H, N))))
        weights = tril(mul(matmul(x[0], swap(x[1])), pow(const(0.9), gap(distance()))))
        graph = Graph("later", x, (matmul(weights, x[2]),))
    result, _ = rewritten(graph)
    assert "linear_attention" in names(result)
    assert all(error(graph, result, n) < 1e-11 for n in (1, 2, 40))


@given(st.sampled_from(sorted(DECAYS)), st.integers(1, 40), st.integers(0, 99))
def test_decays_of_any_numbers(case, n, seed):
    """Whatever the data."""
    graph = graph_of(DECAYS[case])
    assert error(graph, rewritten(graph)[0], n, seed) < 1e-11


def test_what_a_token_leaves_is_read_off_the_sum():
    """Running sums are not taken apart again: the decay is what was summed."""
    for case in ("running sums", "segsum"):
        result, _ = rewritten(graph_of(DECAYS[case]))
        (op,) = (op for op in result.ops() if op.name == "linear_attention")
        assert op.args[3] is result.inputs[3]


def test_no_square_is_left():
    """But where a row sum of the decays themselves is asked for, all values are linear in n."""
    for case in sorted(DECAYS.keys() - {"by the mean"}):
        result, _ = rewritten(graph_of(DECAYS[case]))
        sizes = [at(t.size, {"n": 1 << 12}) for op in result.ops() for t in op.types]
        assert max(sizes) < (1 << 12) ** 2, case


SUM = "not proved to be a sum"


@pytest.mark.parametrize("masked_", [False, True], ids=["all", "past"])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalised"])
def test_weights_of_keys(masked_, normalize):
    """One number a key, with or without a mask: padding, or the steps dt of a state space."""

    def product(a, p):
        weights = expand(reshape(sigmoid(a), shape=(B, H, 1, N)), size=(B, H, N, N))
        return masked(weights) if masked_ else reshape(sigmoid(a), shape=(B, H, 1, N))

    graph = graph_of(product, normalize)
    result, events = rewritten(graph)
    assert [event.applied for event in events] == [True]
    assert ("linear_attention" in names(result)) == masked_
    sizes = [at(t.size, {"n": 1 << 12}) for op in result.ops() for t in op.types]
    assert max(sizes) < (1 << 12) ** 2
    assert all(error(graph, result, n) < 1e-11 for n in (1, 2, 33))


KEPT = {
    "not masked": (lambda a, p: pow(const(0.9), abs_(distance())), "no mask of the future"),
    "of any sign": (lambda a, p: masked(pow(per_head(p), distance())), "not proved to be positive"),
    "other sums": (lambda a, p: masked(exp(apart(a) - reshape(a, shape=(B, H, 1, N)))), SUM),
    "squares": (lambda a, p: masked(exp(distance() * distance() * -0.1)), SUM),
    "a window": (
        lambda a, p: where(OPS["lt"](distance(), 5), masked(pow(const(0.9), distance())), 0.0),
        None,
    ),
    "next token": (
        lambda a, p: where(OPS["ge"](distance(), -1), exp(distance() * -0.1), 0.0),
        "from the token",
    ),
    "the future": (lambda a, p: where(past(), 0.0, exp(apart(cumsum(a, dim=2)))), None),
    "any factor": (lambda a, p: masked(sigmoid(apart(a))), None),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_is_no_decay_stays(case):
    """With the reason where it is nearly one."""
    function, reason = KEPT[case]
    graph = graph_of(function)
    result, events = rewritten(graph)
    assert "linear_attention" not in names(result)
    said = [event.result.reason for event in events if isinstance(event.result, No)]
    assert said == [] if reason is None else any(reason in text for text in said)


def test_the_sum_of_magnitudes_is_not_linear():
    """RetNet's normaliser takes magnitudes of the scores themselves: there is no recurrence of those."""

    def normalised(a, p):
        return masked(pow(const(0.9), distance()))

    with building():
        x = [OPS["input"](name=c, type=TensorType(f32, (B, H, N, D))) for c in "qkv"]
        weights = mul(matmul(x[0], swap(x[1])), normalised(None, None))
        total = clamp(sum_(abs_(weights), dim=3, keepdim=True), min=1.0)
        graph = Graph("retnet", x, (matmul(weights / total, x[2]),))
    result, events = rewritten(graph)
    assert "linear_attention" not in names(result)
    assert any("used elsewhere" in e.result.reason for e in events if isinstance(e.result, No))


# ---- running sums of outer products --------------------------------------------------------------


def fast_transformers(q, k, v):
    """[b, n, h, d], sums along axis 1, as einsum is exported."""
    states = cumsum(matmul(columns(k), rows(v)), dim=1)
    return reshape(matmul(rows(q), states), shape=(B, N, H, 3))


def by_products(q, k, v):
    """The same with broadcast products."""
    return sum_(columns(q) * cumsum(columns(k) * rows(v), dim=1), dim=3)


def commuted(q, k, v):
    return sum_(cumsum(rows(v) * columns(k), dim=1) * columns(q), dim=3, keepdim=True)


def heads_first(q, k, v):
    """[b, h, n, d], sums along axis 2."""
    q, k, v = (permute(x, dims=(0, 2, 1, 3)) for x in (q, k, v))
    return matmul(rows(q), cumsum(matmul(columns(k), rows(v)), dim=2))


def one_head(q, k, v):
    """[b, n, d]."""
    q, k, v = (sum_(x, dim=2) for x in (q, k, v))
    return matmul(rows(q), cumsum(matmul(columns(k), rows(v)), dim=1))


def tokens_first(q, k, v):
    """[n, b, d], sums along axis 0."""
    q, k, v = (permute(sum_(x, dim=2), dims=(1, 0, 2)) for x in (q, k, v))
    return matmul(rows(q), cumsum(matmul(columns(k), rows(v)), dim=0))


def normalised(q, k, v):
    q, k = exp(q), exp(k)
    below = matmul(rows(q), columns(cumsum(k, dim=1)))
    return fast_transformers(q, k, v) / (reshape(below, shape=(B, N, H, 1)) + 1e-6)


def rows(x):
    return reshape(x, shape=(*x.shape[:-1], 1, x.shape[-1]))


def columns(x):
    return reshape(x, shape=(*x.shape, 1))


def states_of(function):
    with building():
        x = [OPS["input"](name=c, type=TensorType(f32, (B, N, H, 3))) for c in "qkv"]
        x.append(OPS["input"](name="a", type=TensorType(f32, (B, H, N))))
        out = function(*x[:3])
        return Graph("running", x, out if isinstance(out, tuple) else (out,))


RUNNING = (fast_transformers, by_products, commuted, heads_first, one_head, tokens_first, normalised)


@pytest.mark.parametrize("function", RUNNING)
def test_running_sums_of_outer_products(function):
    """One state instead of one for each token."""
    graph = states_of(function)
    result, events = rewritten(graph)
    assert [(event.rule, event.applied) for event in events] == [("running_product", True)]
    assert "linear_attention" in names(result)
    assert max(t.rank for op in result.ops() for t in op.types) <= 5
    assert all(error(graph, result, n) < 1e-11 for n in (1, 2, 33))


def test_states_that_are_used_elsewhere_stay():
    """The last one as a cache, say: the reason is told."""

    def cached(q, k, v):
        states = cumsum(matmul(columns(k), rows(v)), dim=1)
        return matmul(rows(q), states), sum_(states, dim=1)

    graph = states_of(cached)
    result, events = rewritten(graph)
    assert "linear_attention" not in names(result)
    assert ["used elsewhere" in event.result.reason for event in events] == [True]


def test_sums_along_another_axis_stay():
    """Over heads or features they are no states."""

    def along(dim):
        return lambda q, k, v: matmul(rows(q), cumsum(matmul(columns(k), rows(v)), dim=dim))

    for dim in (3, 4):
        assert "linear_attention" not in names(rewritten(states_of(along(dim)))[0])
