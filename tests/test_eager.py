"""The eager backend and Inductor: what a compiled graph does besides giving the right numbers."""

import itertools

import numpy as np
import pytest
import torch

from subquad.backends import BACKENDS, backend
from subquad.frontend.capture import capture
from subquad.ir import OPS, BackendError, Graph, IRError, TensorType, building, parse
from subquad.ir.interpret import evaluate
from subquad.ir.ops.attention import attention
from subquad.ir.types import bool_, f32

SIZES = """
graph sizes(%x: f32[b,2*n]) {
  %w = param(name="layer.w", type=f32[4]) : f32[4]
  %0 = reshape(%x, shape=(b, n, 2)) : f32[b,n,2]
  %1 = arange(start=0, end=n, step=1, dtype=i64) : i64[n]
  %2 = const(value=0.5, dtype=f32) : f32[]
  %3 = expand(%2, size=(b, n)) : f32[b,n]
  %4 = size(value=b + n, dtype=f32) : f32[]
  %5 = div(%x, %4) : f32[b,2*n]
  %6 = add(%w, %2) : f32[4]
  update "layer.w" = %6
  return %0, %1, %3, %5
}
"""


def run(graph, *inputs, name="eager", **tensors):
    """Outputs and updates of a graph on a backend."""
    return backend(name).compile(graph)(inputs, tensors)


@pytest.mark.parametrize("shape", [(2, 6), (3, 10), (1, 2)])
def test_one_compiled_graph_serves_every_size(shape):
    """Dims are computed from the inputs at each call; updates come back by name."""
    x, w = torch.randn(shape), torch.ones(4)
    (a, b, c, d), updates = run(parse(SIZES), x, **{"layer.w": w})
    n = shape[1] // 2
    assert torch.equal(a, x.reshape(shape[0], n, 2))
    assert torch.equal(b, torch.arange(n))
    assert torch.equal(c, torch.full((shape[0], n), 0.5))
    torch.testing.assert_close(d, x / (shape[0] + n))
    assert torch.equal(updates["layer.w"], torch.full((4,), 1.5)) and torch.equal(w, torch.ones(4))


def test_a_wrong_shape_is_named():
    """What the graph promised about its inputs is checked at the call."""
    with pytest.raises(IRError, match="input 'x'"):
        run(parse(SIZES), torch.randn(2, 5), **{"layer.w": torch.ones(4)})
    with pytest.raises(BackendError, match="takes 1 inputs"):
        run(parse(SIZES))


def test_gradients_flow_to_inputs_and_params():
    """Autograd goes through a compiled graph, and stops at detach."""
    graph = parse("""graph g(%x: f32[3,4]) {
      %w = param(name="w", type=f32[2,4]) : f32[2,4]
      %0 = linear(%x, %w) : f32[3,2]
      %1 = detach(%0) : f32[3,2]
      %2 = mul(%0, %1) : f32[3,2]
      return %2
    }""")
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    (out,), _ = run(graph, x, w=w)
    out.sum().backward()
    y = (x @ w.T).detach()
    torch.testing.assert_close(w.grad, y.T @ x.detach())
    torch.testing.assert_close(x.grad, y @ w.detach())


def test_constants_keep_the_type_the_graph_gave_them():
    """A typed constant that would promote otherwise as a Python number is made a tensor."""
    graph = parse("""graph g(%x: i64[3], %y: f16[3]) {
      %0 = const(value=2, dtype=f64) : f64[]
      %1 = mul(%x, %0) : f64[3]
      %2 = const(value=2, dtype=f16) : f16[]
      %3 = mul(%y, %2) : f16[3]
      return %1, %3, %0
    }""")
    (a, b, c), _ = run(graph, torch.arange(3), torch.ones(3, dtype=torch.float16))
    assert (a.dtype, b.dtype, c.dtype) == (torch.float64, torch.float16, torch.float64)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_new_tensors_follow_the_inputs_device(device):
    """Nothing in a graph names a device: constants are made where the first input is."""
    x, w = torch.ones(2, 6, device=device), torch.ones(4, device=device)
    outputs, updates = run(parse(SIZES), x, **{"layer.w": w})
    assert {t.device.type for t in (*outputs, *updates.values())} == {device}


def test_opaque_calls_and_higher_order_ops():
    """What is outside the vocabulary runs as it was, also with its own subgraphs."""

    class Model(torch.nn.Module):
        def forward(self, x):
            y = torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))
            return torch.fft.rfft(y).abs(), torch.histc(y, 4, -3, 3)

    x = torch.randn(5, 8)
    captured = capture(Model(), (x,))
    assert {op.name for op in captured.graph.ops()} >= {"opaque"}
    executable = backend("eager").compile(captured.graph, captured.modules)
    for data in (x, x.abs(), -x.abs()):
        for ours, theirs in zip(executable([data], captured.tensors)[0], Model()(data)):
            torch.testing.assert_close(ours, theirs)


def test_an_operator_nobody_registered_is_named():
    """A graph that was saved with a custom op needs whoever defines it."""
    t = TensorType(f32, (2,))
    x = OPS["input"](name="x", type=t)
    y = OPS["opaque"](x, target="nobody.knows.default", args=(), types=(t,))
    with pytest.raises(BackendError, match=r"nobody\.knows\.default"):
        backend("eager").compile(Graph("g", [x], [y]))


def test_random_ops_stay_random():
    """Two calls are two draws, and torch's seed decides them."""
    graph = parse("""graph g(%x: f32[64]) {
      %0 = dropout(%x, p=0.5, train=True, key=1) : f32[64]
      %1 = dropout(%x, p=0.5, train=True, key=2) : f32[64]
      return %0, %1
    }""")
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        draws.append(run(graph, torch.ones(64))[0])
    assert torch.equal(draws[0][0], draws[1][0]) and not torch.equal(draws[0][0], draws[0][1])


def test_the_graph_module_is_readable_and_traceable():
    """The compiled form is plain torch.fx, which Dynamo takes whole."""
    executable = backend("eager").compile(parse(SIZES))
    assert "torch.ops.aten.reshape.default" in executable.graph_module.code
    traced = torch.compile(executable.graph_module, backend="eager", fullgraph=True, dynamic=True)
    x = torch.randn(3, 10)
    assert torch.equal(traced(x, torch.ones(4))[0], x.reshape(3, 5, 2))


@pytest.mark.slow
@pytest.mark.skipif(BACKENDS["inductor"].unavailable() is not None, reason="no C++ compiler")
def test_inductor_gives_the_same():
    """The compiled code agrees with eager, at more than one size."""
    executable = backend("inductor").compile(parse(SIZES))
    for shape in ((2, 6), (3, 10), (5, 8)):
        x, tensors = torch.randn(shape), {"layer.w": torch.ones(4)}
        for ours, theirs in zip(executable([x], tensors)[0], run(parse(SIZES), x, **tensors)[0]):
            torch.testing.assert_close(ours, theirs)


def test_unknown_backends_are_refused_with_the_nearest_name():
    """A typing mistake costs one reading."""
    with pytest.raises(BackendError, match="did you mean 'eager'"):
        backend("eagr")


MASKS = list(
    itertools.product(
        ("none", "padding", "dense", "additive"),
        (False, True),
        (-2, 0, 2),
        (None, 3),
        ("zero", "nan", "uniform"),
    )
)


def test_every_mask_of_attention_means_what_its_body_says():
    """Masks by position, by operand and both, rows with nothing left, with and without a sink."""
    random = np.random.default_rng(0)
    q, k, v = (TensorType(f32, shape) for shape in ((2, 4, 5, 8), (2, 2, 6, 8), (2, 2, 6, 7)))
    masks = {
        "padding": (TensorType(bool_, (2, 1, 1, 6)), random.random((2, 1, 1, 6)) < 0.4),
        "dense": (TensorType(bool_, (5, 6)), random.random((5, 6)) < 0.3),
        "additive": (TensorType(f32, (1, 4, 5, 6)), random.normal(size=(1, 4, 5, 6))),
    }
    for (kind, causal, offset, window, empty), sinks in itertools.product(MASKS, (False, True)):
        if offset and not causal and window is None:
            continue
        with building():
            inputs = [OPS["input"](name=n, type=t) for n, t in zip("qkv", (q, k, v))]
            arrays = [random.normal(size=t.shape) for t in (q, k, v)]
            for name, (type_, array) in masks.items():
                if name == kind:
                    inputs.append(OPS["input"](name="m", type=type_))
                    arrays.append(array)
            sink = OPS["input"](name="s", type=TensorType(f32, (4,)))
            mask = inputs[3] if len(inputs) > 3 else None
            if sinks:
                inputs, arrays = [*inputs, sink], [*arrays, random.normal(size=4)]
            y = attention(*inputs[:3], mask, sink if sinks else None, scale=0.3, causal=causal, offset=offset,
                          window=window, empty=empty)  # fmt: skip
            graph = Graph("g", inputs, [y])
        (wanted,), _ = evaluate(graph, arrays)
        tensors = [torch.tensor(a, dtype=torch.bool if a.dtype == bool else torch.float32) for a in arrays]
        (given,), _ = backend("eager").compile(graph)(tensors, {})
        np.testing.assert_allclose(given.numpy(), wanted, atol=2e-6, err_msg=str(graph))
