"""Small functions over values, as graphs: run by the oracle and by torch, differentiated, and counted."""

import functools

import numpy as np
import torch

from subquad.backends import backend
from subquad.ir import OPS, Graph, TensorType, building, cost, evaluate, symbol
from subquad.ir.dims import evaluate as evaluate_dim
from subquad.ir.types import bool_, f64

N = symbol("n")


def graph_of(function, *types):
    """`function` as a graph; a shape stands for f64 of it, and results may be a tuple with None."""
    types = [t if isinstance(t, TensorType) else TensorType(f64, t) for t in types]
    with building():
        inputs = [OPS["input"](name=f"x{i}", type=t) for i, t in enumerate(types)]
        found = function(*inputs)
    found = [x for x in found if x is not None] if isinstance(found, tuple) else [found]
    return Graph("piece", inputs, found)


def flags(*shape):
    """The type of a bool operand."""
    return TensorType(bool_, shape)


@functools.lru_cache(maxsize=512)
def compiled(graph):
    """The graph as torch calls."""
    return backend("eager").compile(graph)


def run(graph, *arrays):
    """The results of the oracle, after torch's were found to be within 1e-10 of them."""
    with np.errstate(all="ignore"):
        expected, _ = evaluate(graph, arrays)
    actual, _ = compiled(graph)([torch.from_numpy(np.ascontiguousarray(x)) for x in arrays], {})
    for a, b in zip(actual, expected, strict=True):
        assert tuple(a.shape) == b.shape
        close(a.numpy(), b)
    return expected[0] if len(expected) == 1 else expected


def close(a, b, tolerance=1e-10):
    """Every element within tolerance of the greater of one and the largest."""
    assert a.shape == np.shape(b), (a.shape, np.shape(b))
    if a.size:
        scale = max(1.0, float(np.abs(b).max()))
        assert np.abs(np.asarray(a, float) - np.asarray(b, float)).max() <= tolerance * scale


def gradients(graph, *arrays):
    """Assert that torch's gradients of the first result are those of finite differences, and not all 0."""
    leaves = [torch.from_numpy(np.array(x)) for x in arrays]
    leaves = [x.requires_grad_() if x.is_floating_point() else x for x in leaves]

    def first(*xs):
        return compiled(graph)(xs, {})[0][0]

    assert torch.autograd.gradcheck(first, leaves, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)
    wanted = [x for x in leaves if x.requires_grad]
    for grad in torch.autograd.grad(first(*leaves).square().sum(), wanted):
        assert grad.isfinite().all() and grad.abs().max() > 0


def assert_linear(graph, what=("flops", "bytes"), step=1 << 12):
    """Cost is a + c n with c > 0, exactly, for n of whole blocks."""
    for name in what:
        total = getattr(cost(graph), name)
        one, two, three = (evaluate_dim(total, {"n": i * step}) for i in (1, 2, 3))
        assert three - two == two - one > 0, name
