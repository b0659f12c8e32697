"""The op subquad::linear_scan against a loop over tokens: values, gradients, and what torch needs of it."""

import numpy as np
import pytest
import torch
from graphs import N, assert_linear, close, gradients, graph_of, run
from torch.utils.flop_counter import FlopCounterMode

from subquad.backends import scan
from subquad.backends.scan import linear_scan
from subquad.frontend import capture
from subquad.ir import OPS, IRError, TensorType
from subquad.ir.interpret import evaluate_body
from subquad.ir.types import bf16, i64

LENGTHS = (1, 2, 7, 8, 9, 64, 65, 200)
FORMS = pytest.mark.parametrize("log", [False, True], ids=["decay", "log decay"])
WAYS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def loop(x, decay, initial=None, log=False, reverse=False):
    """The definition, token by token, of torch tensors."""
    f = decay.exp() if log else decay
    h, out = torch.zeros_like(x[..., 0, :]) if initial is None else initial, {}
    for t in range(x.shape[-2])[:: -1 if reverse else 1]:
        h = f[..., t, :] * h + x[..., t, :]
        out[t] = h
    return torch.stack([out[t] for t in range(x.shape[-2])], -2)


def operands(n, *lead, d=3, log=False, dtype=torch.float64, grad=False, seed=0):
    """x, decays of which some are exactly 0 and some exactly 1, and a state to start from."""
    rng = torch.Generator().manual_seed(seed + n)
    lead = lead or (2,)
    x = torch.randn(*lead, n, d, generator=rng, dtype=torch.float64)
    f = torch.rand(*lead, n, d, generator=rng, dtype=torch.float64)
    if log:
        f = torch.where(f < 0.1, -1e4, (f + 1e-3).clamp(max=1).log())
    else:
        f = torch.where(f < 0.1, 0.0, torch.where(f > 0.8, 1.0, f))
    h = torch.randn(*lead, d, generator=rng, dtype=torch.float64)
    return tuple(t.to(dtype).requires_grad_(grad) for t in (x, f, h))


def with_grads(f, tensors, *rest):
    """f and its gradients for one fixed cotangent."""
    out = f(*tensors, *rest)
    cotangent = (torch.arange(out.numel()) % 17 - 8).to(out.dtype).reshape(out.shape) / 8
    given = [t for t in tensors if t is not None]
    return [t.detach().double().numpy() for t in (out, *torch.autograd.grad(out, given, cotangent))]


def same(ours, theirs, tolerance=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, tolerance)


@FORMS
@WAYS
@pytest.mark.parametrize("n", LENGTHS)
def test_blocks_are_the_loop(n, reverse, log):
    """Values and gradients, with a state to start from and without."""
    x, f, h = operands(n, log=log, grad=True)
    same(with_grads(linear_scan, (x, f, h), log, reverse), with_grads(loop, (x, f, h), log, reverse))
    same(with_grads(linear_scan, (x, f), None, log, reverse), with_grads(loop, (x, f), None, log, reverse))


@WAYS
def test_how_tokens_are_cut_does_not_matter(reverse):
    """Any blocks, any spans; and one step after another for many channels."""
    x, f, h = operands(203, 2, 2)
    expected = loop(x, f, h, False, reverse)
    for block, span in [(1, 1), (7, 1000), (16, 200), (64, 1 << 20), (203, 1), (1000, 1)]:
        close(scan._forward(x, f, h, False, reverse, block, span).numpy(), expected.numpy(), 1e-12)
    x, f, h = operands(5, 2, d=scan.WIDE)
    close(linear_scan(x, f, h, False, reverse).numpy(), loop(x, f, h, False, reverse).numpy(), 1e-12)


@pytest.mark.parametrize(
    "lead, n, d", [((0,), 4, 3), ((2,), 0, 3), ((2,), 4, 0), ((), 4, 3), ((2, 1, 3), 5, 2)]
)
def test_odd_sizes(lead, n, d):
    x, f, h = (torch.rand(*lead, n, d), torch.rand(*lead, n, d), torch.rand(*lead, d))
    tensors = [t.double().requires_grad_() for t in (x, f, h)]
    out = linear_scan(*tensors)
    assert out.shape == x.shape and out.is_contiguous()
    if x.numel():
        same(with_grads(linear_scan, tensors), with_grads(loop, tensors))
    elif h.numel():
        assert all(not g.any() for g in torch.autograd.grad(out.sum(), tensors))


def test_strided_operands():
    """Transposed, and expanded over tokens or channels."""
    x, f, h = operands(70, 2, d=4)
    x = x.transpose(1, 2).contiguous().transpose(1, 2)
    for decay in (f[:, :1].expand_as(x), f[..., :1].expand_as(x)):
        tensors = [t.detach().requires_grad_() for t in (x, decay, h)]
        assert not tensors[0].is_contiguous()
        same(with_grads(linear_scan, tensors), with_grads(loop, tensors))


def test_extremes():
    """All forgotten, all kept, decays that underflow together, and what comes before a reset."""
    x, _, h = operands(300)
    close(linear_scan(x, torch.zeros_like(x), h).numpy(), x.numpy(), 0)
    close(linear_scan(x, torch.ones_like(x), h).numpy(), (x.cumsum(-2) + h[:, None]).numpy(), 1e-12)
    tiny = torch.full_like(x, 1e-30).float()
    close(linear_scan(x.float(), tiny, h.float()).numpy(), loop(x.float(), tiny, h.float()).numpy(), 0)
    lasting = torch.full_like(x, -1e-9)
    close(linear_scan(x, lasting, h, True).numpy(), loop(x, lasting, h, True).numpy(), 1e-12)
    assert torch.equal(linear_scan(x, torch.full_like(x, -torch.inf), h, True), x)


@WAYS
def test_tokens_to_come_change_nothing(reverse):
    """Not even when they are not numbers; and a state carried on is the whole sequence."""
    x, f, h = operands(200)
    whole = linear_scan(x, f, h, False, reverse)
    for n in (1, 63, 64, 130):
        here, rest = (slice(-n, None), slice(0, -n)) if reverse else (slice(0, n), slice(n, None))
        part = linear_scan(x[:, here], f[:, here], h, False, reverse)
        close(part.numpy(), whole[:, here].numpy(), 1e-14)
        then = linear_scan(x[:, rest], f[:, rest], part[:, 0 if reverse else -1], False, reverse)
        close(then.numpy(), whole[:, rest].numpy(), 1e-13)
        spoilt = x.clone()
        spoilt[:, rest] = torch.nan
        assert linear_scan(spoilt, f, h, False, reverse)[:, here].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_against_float64(dtype):
    """States are f32: what is left is one rounding of each result, and of the states in a gradient."""
    low = operands(300, d=8, dtype=dtype, grad=True)
    high = tuple(t.detach().double().requires_grad_() for t in low)
    assert {t.dtype for t in (linear_scan(*low), *torch.autograd.grad(linear_scan(*low).sum(), low))} == {
        dtype
    }
    tolerance = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-5}[dtype]
    same(with_grads(linear_scan, low), with_grads(loop, high), tolerance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = linear_scan(*(t.float() for t in low))
    assert torch.equal(inside, linear_scan(*(t.float() for t in low)))


# ---- what torch needs of it ----------------------------------------------------------------------


@FORMS
@WAYS
def test_opcheck(reverse, log):
    for initial in (True, False):
        x, f, h = operands(70, log=log, grad=True)
        torch.library.opcheck(linear_scan, (x, f, h if initial else None, log, reverse))


@FORMS
@WAYS
def test_second_derivatives(reverse, log):
    x, f, h = operands(5, 1, d=2, seed=3)
    f = -f - 0.1 if log else f * 0.5 + 0.2
    tensors = [t.requires_grad_() for t in (x, f, h)]
    assert torch.autograd.gradgradcheck(lambda *t: linear_scan(*t, log, reverse), tensors)


def test_vmap():
    x, f, h = operands(11, 5, 2)
    ours = torch.vmap(linear_scan, in_dims=(1, None, 0))(x.transpose(0, 1), f[0], h)
    close(ours.numpy(), torch.stack([loop(x[i], f[0], h[i]) for i in range(5)]).numpy(), 1e-12)
    ours = torch.vmap(lambda x, f: linear_scan(x, f, None, False, True), in_dims=(0, 0))(x, f)
    close(ours.numpy(), loop(x, f, None, False, True).numpy(), 1e-12)
    x, f, h = operands(11, grad=True)
    cotangents = torch.randn(4, *x.shape, dtype=x.dtype)  # several at once map the backward pass
    for a, b in zip(*(torch.autograd.grad(g(x, f, h), (x, f, h), cotangents, is_grads_batched=True)
                      for g in (linear_scan, loop))):  # fmt: skip
        close(a.numpy(), b.numpy(), 1e-12)


class Gated(torch.nn.Module):
    """HGRN's mixer: a gate between the new token and the state."""

    def forward(self, x):
        f = x.sigmoid()
        return linear_scan((1 - f) * x, f) + x


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(Gated(), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (70, 5):
        x = torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True)
        same(with_grads(compiled, [x]), with_grads(Gated(), [x]))


def test_flops():
    x, f, h = operands(70)
    for log, each in ((False, 2), (True, 3)):
        with FlopCounterMode(display=False) as counter:
            linear_scan(x, f, h, log, False)
        assert counter.get_total_flops() == each * x.numel()


# ---- the op of the graph language ----------------------------------------------------------------


@FORMS
@WAYS
@pytest.mark.parametrize("initial", [False, True], ids=["from zero", "from a state"])
def test_the_op_of_the_graph(initial, reverse, log):
    """Its recurrence, its body and torch's op agree at every length; cost is linear; gradients flow."""
    types = ((2, N, 3), (2, N, 3), (2, 3))[: 2 + initial]
    graph = graph_of(lambda *t: OPS["linear_scan"](*t, log=log, reverse=reverse), *types)
    for n in (1, 7, 64, 65):
        arrays = [t.numpy() for t in operands(n, log=log)][: 2 + initial]
        out = run(graph, *arrays)
        close(out, loop(*map(torch.from_numpy, arrays), **dict(log=log, reverse=reverse)).numpy())
        close(evaluate_body(graph.outputs[0].op, arrays, {"n": n}), out)
    assert_linear(graph)
    gradients(graph, *[t.numpy() for t in operands(6)][: 2 + initial])


def test_captured_as_the_op():
    """A model that calls it imports to it, at an open length."""
    n = torch.export.Dim("n", min=2, max=4096)
    program = capture(Gated(), (torch.randn(2, 70, 4),), dynamic_shapes=({1: n},))
    names = [op.name for op in program.graph.ops()]
    assert "linear_scan" in names and "opaque" not in names


@pytest.mark.parametrize(
    "x, f, h, sentence",
    [
        ((3,), (3,), None, "every element has its own decay"),
        ((2, 5, 3), (2, 5, 1), None, "expand one to the other"),
        ((2, 5, 3), (2, 5, 3), (2, 1, 3), "x without its tokens"),
    ],
)
def test_wrong_shapes_are_refused_with_a_sentence(x, f, h, sentence):
    with pytest.raises(ValueError, match=sentence):
        linear_scan(torch.ones(x), torch.ones(f), None if h is None else torch.ones(h))
    with pytest.raises(IRError):
        graph_of(lambda *t: OPS["linear_scan"](*t), *(t for t in (x, f, h) if t is not None))


def test_dtypes():
    """Integers are refused; the result has x's."""
    with pytest.raises(ValueError, match="convert it first"):
        linear_scan(torch.ones(2, 3), torch.ones(2, 3).long())
    with pytest.raises(IRError, match="cannot be i64"):
        graph_of(lambda *t: OPS["linear_scan"](*t), (2, 3), TensorType(i64, (2, 3)))
    narrow = graph_of(lambda x, f: OPS["linear_scan"](x, f), TensorType(bf16, (2, 3)), (2, 3))
    assert narrow.outputs[0].dtype is bf16
    assert linear_scan(torch.ones(2, 3).bfloat16(), torch.ones(2, 3)).dtype == torch.bfloat16
    assert np.isfinite(run(graph_of(lambda x, f: OPS["linear_scan"](x, f), (2, 3), (2, 3)),
                           np.ones((2, 3)), np.ones((2, 3)))).all()  # fmt: skip
