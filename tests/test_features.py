"""Feature maps against their formulas in plain numpy; causality, gradients, cost; random starts."""

import itertools
import math

import numpy as np
import pytest
import torch
from graphs import N, assert_linear, close, flags, gradients, graph_of, run

from subquad.backends import backend
from subquad.ir import OPS, Graph, IRError, building
from subquad.ir.ops.reduce import sum_
from subquad.ir.types import f32
from subquad.passes.recipes import features as F

B, H, D = 2, 3, 4
SHAPE = (B, H, N, D)
LENGTHS = (1, 2, 7)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def exp_softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


W = draw(H, D, 5, seed=1)  # a matrix for each head
BIAS = draw(5, seed=2)
ANCHORS, OFFSET, PLANES = draw(H, 6, D, seed=3), draw(1, H, 1, 6, seed=4) * 0.1, draw(H, 6, 8, seed=5)


def np_favor(x, w, scale=0.3, eps=1e-6):
    x = x * scale**0.5
    return (np.exp(x @ w - (x * x).sum(-1, keepdims=True) / 2) + eps) / math.sqrt(w.shape[-1])


def np_cosine(x, length, start=0):
    i = np.arange(start + 1, start + x.shape[2] + 1)[:, None] * math.pi / 2 / length
    return np.concatenate([np.maximum(x, 0) * np.cos(i), np.maximum(x, 0) * np.sin(i)], -1)


def np_codes(x, anchors, offset, planes, width=None):
    u = x / np.linalg.norm(x, axis=-1, keepdims=True)
    squares = ((u[..., None, :] - anchors[:, None]) ** 2).sum(-1)
    width = squares.mean((2, 3), keepdims=True) if width is None else width
    return np.sign((np.exp(-squares / (2 * width)) - offset) @ planes)


# name: the map of values, its weights, the formula in numpy, whether each token is mapped by itself
MAPS = {
    "identity": (F.identity, (), lambda x: x, True),
    "relu": (F.relu, (), lambda x: np.maximum(x, 0), True),
    "elu1": (F.elu1, (), lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))), True),
    "silu": (F.silu, (), lambda x: x / (1 + np.exp(-x)), True),
    "softmax": (F.softmax, (), exp_softmax, True),
    "exp": (F.exponential, (), np.exp, True),
    "exp row": (lambda x: F.exponential(x, shift="row"), (),
                lambda x: np.exp(x - x.max(-1, keepdims=True)), True),
    "exp all": (lambda x: F.exponential(x, shift="all"), (),
                lambda x: np.exp(x - x.max((2, 3), keepdims=True)), False),
    "learned": (F.learned, (W, BIAS), lambda x, w, b: x @ w + b, True),
    "hedgehog": (F.hedgehog, (W,), lambda x, w: np.concatenate(
        [exp_softmax(x @ w), exp_softmax(-(x @ w))], -1).clip(1e-12), True),
    "hedgehog_joint": (F.hedgehog_joint, (W, BIAS), lambda x, w, b: exp_softmax(
        np.concatenate([2 * (x @ w + b), -2 * (x @ w + b)], -1)), True),
    "favor": (lambda x, w: F.favor(x, w, scale=0.3), (W,), np_favor, True),
    "rectified": (lambda x, w: F.rectified(x, w, eps=1e-3), (W,),
                  lambda x, w: np.maximum(x @ w, 0) / math.sqrt(5) + 1e-3, True),
    "cosine": (lambda x: F.cosine(x, length=64, start=3), (), lambda x: np_cosine(x, 64, 3), True),
    "cosine of n": (lambda x: F.cosine(x, length=N), (), lambda x: np_cosine(x, x.shape[2]), False),
    "codes": (F.codes, (ANCHORS, OFFSET, PLANES), np_codes, False),
    "codes of a width": (lambda x, a, o, w: F.codes(x, a, o, w, width=half(x)), (ANCHORS, OFFSET, PLANES),
                         lambda *xs: np_codes(*xs, width=0.5), True),
}  # fmt: skip


def half(x):
    return OPS["const"](value=0.5, dtype=x.dtype)


def graph_for(name, shape=SHAPE):
    made, weights, _, _ = MAPS[name]
    return graph_of(made, shape, *(w.shape for w in weights))


@pytest.mark.parametrize("name", MAPS)
def test_map_is_its_formula(name):
    _, weights, formula, alone = MAPS[name]
    graph = graph_for(name)
    for n in LENGTHS:
        x = draw(B, H, n, D, seed=n) * 2
        found = run(graph, x, *weights)
        close(found, formula(x, *weights))
        if alone and n > 2:  # appending tokens changes no earlier feature
            close(found[:, :, :2], run(graph, x[:, :, :2], *weights))
    if graph.ops()[1:]:
        assert_linear(graph)


@pytest.mark.parametrize("name", [m for m in MAPS if not m.startswith(("codes", "exp "))])
def test_gradients_flow(name):
    _, weights, _, _ = MAPS[name]
    gradients(graph_for(name, (1, H, N, D)), draw(1, H, 2, D, seed=9), *weights)


@pytest.mark.parametrize("shift, dim", [("row", (3,)), ("all", (2, 3))])
def test_shifts_cancel_in_a_normalised_sum(shift, dim):
    """In the value and in the gradient, though the shift itself has none."""

    def share(x):
        y = F.exponential(x, shift=shift)
        return y / sum_(y, dim=dim, keepdim=True)

    graph, x = graph_of(share, (1, H, N, D)), draw(1, H, 3, D)
    e = np.exp(x)
    close(run(graph, x), e / e.sum(dim, keepdims=True))
    gradients(graph, x)


def test_codes_pass_gradients_straight_through():
    """The gradient is that of what is hashed, clamped to +-1."""
    x, weights = draw(1, H, 3, D), (ANCHORS, OFFSET, PLANES * 0.2)
    graph = graph_for("codes", (1, H, N, D))
    leaf = torch.tensor(x, requires_grad=True)
    (out,), _ = backend("eager").compile(graph)([leaf, *map(torch.from_numpy, weights)], {})
    assert set(out.detach().unique().tolist()) == {-1.0, 1.0}
    (found,) = torch.autograd.grad(out.sum(), leaf)
    u = leaf / leaf.norm(dim=-1, keepdim=True)
    squares = (u[..., None, :] - torch.from_numpy(ANCHORS)[:, None]).square().sum(-1)
    kernel = torch.exp(-squares / (2 * squares.mean((2, 3), keepdim=True))) - torch.from_numpy(OFFSET)
    (expected,) = torch.autograd.grad((kernel @ torch.from_numpy(weights[2])).clamp(-1, 1).sum(), leaf)
    close(found.numpy(), expected.numpy())
    assert found.abs().max() > 0


@pytest.mark.parametrize("d", [1, 2, 3, 6])
@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_taylor_is_the_polynomial_of_the_score(d, order):
    """By its inner products, with as many features as there are monomials."""
    graph = graph_of(lambda x: F.taylor(x, order=order, scale=0.7), (1, 1, N, d))
    q, k = draw(1, 1, 5, d), draw(1, 1, 4, d, seed=1)
    a, b = run(graph, q), run(graph, k)
    assert a.shape[-1] == math.comb(d + order, order)
    s = 0.7 * q @ k.swapaxes(2, 3)
    close(a @ b.swapaxes(2, 3), sum(s**m / math.factorial(m) for m in range(order + 1)))
    if order:  # of order 0 it is a row of ones, which costs nothing
        assert_linear(graph)
        gradients(graph, q[:, :, :2])


def test_powers_are_the_monomials():
    """Each product of so many entries once, by its weight."""
    x = draw(1, 1, 1, 3)
    for found, m in zip(run(graph_of(lambda x: tuple(F.powers(x, 3)), (1, 1, N, 3)), x), range(4)):
        expected = []
        for chosen in itertools.combinations_with_replacement(range(3), m):
            weight = math.prod(math.factorial(chosen.count(i)) for i in range(3)) ** -0.5
            expected.append(weight * math.prod(x[0, 0, 0, i] for i in chosen))
        close(np.sort(found.ravel()), np.sort(expected))


def test_polynomial_refuses_what_its_bound_does_not_hold():
    """R = scale d limit^2; order 2 is good to 10 % up to about half, order 4 to about one."""
    graph = graph_of(lambda x: F.polynomial(x, order=2, scale=0.25, limit=0.7), (1, 1, N, 4))
    x = draw(1, 1, 6, 4) * 3
    clipped = run(graph_of(lambda x: F.taylor(x, order=2, scale=0.25), (1, 1, N, 4)), x.clip(-0.7, 0.7))
    close(run(graph, x), clipped)
    w = clipped @ clipped.swapaxes(2, 3)
    exact = np.exp(0.25 * x.clip(-0.7, 0.7) @ x.clip(-0.7, 0.7).swapaxes(2, 3))
    assert (np.abs(w / exact - 1) <= F.taylor_error(0.49, 2) + 1e-12).all()
    assert F.taylor_error(0.5, 2) < 0.1 < F.taylor_error(1.0, 2) and F.taylor_error(1.0, 4) < 0.1
    with pytest.raises(IRError, match="scores reach 1, where order 2 is off"):
        graph_of(lambda x: F.polynomial(x, order=2, scale=0.25, limit=1.0), (1, 1, N, 4))
    with pytest.raises(IRError, match="814385; 10000 at most"):
        graph_of(lambda x: F.taylor(x, order=4, scale=0.1), (1, 1, N, 64))


@pytest.mark.parametrize("name", ["exp", "favor", "codes"])
def test_padded_tokens_do_not_count(name):
    """Whatever they hold, maps that look at all tokens look past them."""
    make = {
        "exp": lambda x, p: F.exponential(x, shift="all", padding=p),
        "favor": lambda x, p, w: F.favor(x, w, scale=0.3, shift="all", padding=p),
        "codes": lambda x, p, a, o, w: F.codes(x, a, o, w, padding=p),
    }[name]
    weights = {"exp": (), "favor": (W,), "codes": (ANCHORS, OFFSET, PLANES)}[name]
    graph = graph_of(make, SHAPE, flags(B, 1, 1, N), *(w.shape for w in weights))
    x, keep = draw(B, H, 6, D), np.ones((B, 1, 1, 6), bool)
    keep[1, ..., [1, 5]] = False
    seen = keep[:, 0, 0]
    before = run(graph, x, keep, *weights)
    other = np.where(seen[:, None, :, None], x, 50.0)
    after = run(graph, other, keep, *weights)
    for b in range(B):
        close(after[b][:, seen[b]], before[b][:, seen[b]])
    short = run(graph_of(lambda x, *w: make(x, None, *w), SHAPE, *(w.shape for w in weights)),
                x[1:][:, :, seen[1]].repeat(2, 0), *weights)  # fmt: skip
    close(before[1][:, seen[1]], short[1])


def test_favor_estimates_the_softmax_kernel():
    """With orthogonal directions the mean over draws comes near exp(scale q . k); q by rows, k by none."""
    start = graph_start(lambda: F.orthogonal(4096, D))
    (w,), _ = start
    w = w.double().numpy()
    blocks = w[:, : 1000 * D].T.reshape(1000, D, D)
    products = blocks @ blocks.swapaxes(1, 2)
    lengths = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
    assert np.abs(products / lengths[:, :, None] / lengths[:, None] - np.eye(D)).max() < 1e-4
    assert abs((lengths**2).mean() - D) < 0.2  # chi-squared with D degrees of freedom
    q, k = draw(1, 1, 4, D) * 0.7, draw(1, 1, 5, D, seed=1) * 0.7
    rows = graph_of(lambda x, w: F.favor(x, w, scale=0.5, shift="row"), (1, 1, N, D), w.shape)
    plain = graph_of(lambda x, w: F.favor(x, w, scale=0.5), (1, 1, N, D), w.shape)
    exact = np.exp(0.5 * q @ k.swapaxes(2, 3))
    for phi in (plain, rows):
        ratio = run(phi, q, w) @ run(plain, k, w).swapaxes(2, 3) / exact
        assert np.abs(ratio / ratio.mean(-1, keepdims=True) - 1).max() < 0.1  # a row's factor cancels
    assert np.abs(run(plain, q, w) @ run(plain, k, w).swapaxes(2, 3) / exact - 1).max() < 0.1


def graph_start(make):
    """What a weight starts from, drawn by torch under a fixed seed."""
    with building():
        graph = Graph("start", (), (make(),))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return backend("eager").compile(graph)([], {})


@pytest.mark.parametrize("count, d", [(3, 5), (5, 5), (12, 5)])
def test_orthogonal_directions(count, d):
    """Of equal length when asked; any number of them."""
    (w,), _ = graph_start(lambda: F.orthogonal(count, d, gaussian=False, dtype=f32))
    assert tuple(w.shape) == (d, count) and w.dtype == torch.float32
    close(w.norm(dim=0).numpy(), np.full(count, math.sqrt(d)), 1e-5)
    first = w[:, : min(count, d)].T.numpy()
    close(first @ first.T, d * np.eye(len(first)), 1e-5)


def test_what_is_refused():
    """A shift that is none, positions beyond the length, weights of unknown width."""
    with pytest.raises(IRError, match="'row', 'all' or 'none'"):
        graph_of(lambda x: F.exponential(x, shift="column"), SHAPE)
    with pytest.raises(IRError, match="beyond length=4"):
        graph_of(lambda x: F.cosine(x, length=4), (B, H, 5, D))
    with pytest.raises(IRError, match="has to be known"):
        graph_of(lambda x, w: F.favor(x, w, scale=1.0), SHAPE, (D, N))
