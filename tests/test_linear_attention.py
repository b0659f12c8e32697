"""The op subquad::linear_attention against a loop over tokens and against the quadratic form."""

import pytest
import torch
from largest import Largest
from torch.utils.flop_counter import FlopCounterMode

from subquad.backends.linear_attention import CHUNK, kernels, linear_attention, linear_attention_backward

EPS = 1e-6
LENGTHS = (0, 1, 3, CHUNK - 1, CHUNK, CHUNK + 1, 257)
# The four ways to ask for it, as (causal, normalize).
MODES = [(False, False), (False, True), (True, False), (True, True)]
modes = pytest.mark.parametrize("causal, normalize", MODES, ids=["sum", "mean", "causal-sum", "causal-mean"])


def recurrent(q, k, v, causal, normalize, eps=EPS):
    """The definition, token by token: S += k v^T, z += k, then o = S^T q / (z . q + eps)."""
    r = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(r, 1), v.repeat_interleave(r, 1)
    s = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
    z = q.new_zeros(*q.shape[:2], q.shape[3])
    out = []

    def read(i):
        o = torch.einsum("bhd,bhde->bhe", q[:, :, i], s)
        return o / ((q[:, :, i] * z).sum(-1, keepdim=True) + eps) if normalize else o

    for j in range(k.shape[2]):
        s = s + k[:, :, j, :, None] * v[:, :, j, None, :]
        z = z + k[:, :, j]
        if causal:
            out.append(read(j))
    if not causal:
        out = [read(i) for i in range(q.shape[2])]
    return torch.stack(out, 2) if out else q.new_zeros(*q.shape[:3], v.shape[3])


def parallel(q, k, v, causal, normalize, eps=EPS):
    """The same with all n x m weights written out."""
    r = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(r, 1), v.repeat_interleave(r, 1)
    w = q @ k.mT
    w = w.tril() if causal else w
    return w @ v / (w.sum(-1, keepdim=True) + eps) if normalize else w @ v


def operands(n, m=None, b=2, h=2, g=2, d=5, e=3, dtype=torch.float64, grad=False):
    """Positive q and k, as feature maps make them, and any v."""
    rng = torch.Generator().manual_seed(n + 7 * d)
    m = n if m is None else m
    q = torch.rand(b, h, n, d, generator=rng, dtype=torch.float64)
    k = torch.rand(b, g, m, d, generator=rng, dtype=torch.float64)
    v = torch.randn(b, g, m, e, generator=rng, dtype=torch.float64)
    return tuple(x.to(dtype).requires_grad_(grad) for x in (q, k, v))


def with_grads(f, tensors, *rest):
    """f and its gradients for one fixed cotangent, exact in every dtype."""
    out = f(*tensors, *rest)
    cotangent = (torch.arange(out.numel()) % 17 - 8).to(out.dtype).reshape(out.shape) / 8
    return out, *torch.autograd.grad(out, tensors, cotangent)


def close(ours, theirs, tol):
    """Every pair within tol of the larger of one and the greatest entry."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        if b.numel():
            assert (a - b).abs().max() <= tol * max(1.0, b.abs().max()), (a - b).abs().max()


# ---- what it computes


@modes
@pytest.mark.parametrize("n", LENGTHS)
def test_chunked_recurrent_and_parallel_agree(n, causal, normalize):
    tensors = operands(n, grad=True)
    ours = with_grads(linear_attention, tensors, causal, normalize, EPS)
    written_out = with_grads(parallel, tensors, causal, normalize)
    close(ours, written_out, 1e-12)
    if n:  # the loop takes no step, and so has no gradient, at n = 0
        close(ours, with_grads(recurrent, tensors, causal, normalize), 1e-12)


@modes
@pytest.mark.parametrize("h, g", [(4, 2), (6, 1)])
def test_grouped_queries(h, g, causal, normalize):
    tensors = operands(CHUNK + 9, h=h, g=g, grad=True)
    ours = with_grads(linear_attention, tensors, causal, normalize, EPS)
    close(ours, with_grads(parallel, tensors, causal, normalize), 1e-12)


@modes
def test_chunk_and_span_do_not_matter(causal, normalize):
    q, k, v = operands(203, h=4, g=2)
    grad = torch.ones(2, 4, 203, 3, dtype=torch.float64)
    whole = (q, k, v, causal, normalize, EPS)
    expected = kernels.forward(*whole, chunk=203)[0], *kernels.backward(grad, *whole, chunk=203)[:3]
    for chunk, rows in [(1, 1), (7, 64), (16, 10_000), (64, 500), (1000, 1)]:
        cut = dict(chunk=chunk, rows=rows)
        ours = kernels.forward(*whole, **cut)[0], *kernels.backward(grad, *whole, **cut)[:3]
        close(ours, expected, 1e-12)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n, m", [(7, 130), (130, 7), (5, 0), (0, 5)])
def test_cross_attention_lengths(n, m, normalize):
    tensors = operands(n, m, grad=True)
    ours = with_grads(linear_attention, tensors, False, normalize, EPS)
    close(ours, with_grads(parallel, tensors, False, normalize), 1e-12)


@modes
@pytest.mark.parametrize("size", [dict(b=0), dict(d=1, e=1), dict(d=0), dict(e=0)], ids=str)
def test_odd_sizes(size, causal, normalize):
    tensors = operands(CHUNK + 1, grad=True, **size)
    ours = with_grads(linear_attention, tensors, causal, normalize, EPS)
    close(ours, with_grads(parallel, tensors, causal, normalize), 1e-12)


@modes
def test_strided_operands(causal, normalize):
    q, k, v = operands(CHUNK + 5, h=4, g=2)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k)]
    strided.append(v[:, :, :1].expand_as(v).detach().requires_grad_())
    assert not any(x.is_contiguous() for x in strided)
    ours = with_grads(linear_attention, strided, causal, normalize, EPS)
    close(ours, with_grads(parallel, strided, causal, normalize), 1e-12)
    assert ours[0].is_contiguous()


@modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_against_float64(dtype, causal, normalize):
    low = operands(300, d=16, e=8, dtype=dtype, grad=True)
    high = tuple(x.detach().double().requires_grad_() for x in low)
    ours = with_grads(linear_attention, low, causal, normalize, EPS)
    assert {x.dtype for x in ours} == {dtype}
    # Sums are float32, so what is left is one rounding of each result.
    tol = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 1e-5}[dtype]
    expected = with_grads(parallel, high, causal, normalize)
    close([x.double() for x in ours], expected, tol)


def test_mixed_dtypes_give_the_dtype_of_q():
    q, k, v = operands(9, dtype=torch.float32)
    out = linear_attention(q, k, v.bfloat16(), True, True, EPS)
    assert out.dtype == torch.float32
    close([out], [parallel(q, k, v.bfloat16().float(), True, True)], 1e-5)


def test_autocast_does_not_reach_the_sums():
    tensors = operands(200, dtype=torch.float32, grad=True)
    args = (True, True, EPS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = with_grads(linear_attention, tensors, *args)
    for a, b in zip(inside, with_grads(linear_attention, tensors, *args)):
        assert torch.equal(a, b)


def test_later_tokens_change_no_earlier_output():
    q, k, v = operands(5 * CHUNK + 3)
    whole = linear_attention(q, k, v, True, True, EPS)
    for n in (1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK + 2):
        part = linear_attention(q[:, :, :n], k[:, :, :n], v[:, :, :n], True, True, EPS)
        close([whole[:, :, :n]], [part], 1e-14)
    v[:, :, 100:] = float("inf")  # not even where the future is not finite, chunk by chunk
    spoilt = linear_attention(q, k, v, True, False, EPS)
    assert spoilt[:, :, : 100 // CHUNK * CHUNK].isfinite().all()


def test_memory_is_linear():
    """No tensor of n x n entries, forward or backward: none larger than a few operands."""

    n = 4096
    q, k, v = operands(n, b=1, h=1, g=1, d=32, e=32, dtype=torch.float32)
    with Largest() as seen:
        out, _ = kernels.forward(q, k, v, True, True, EPS)
        kernels.backward(torch.ones_like(out), q, k, v, True, True, EPS)
    assert seen.size < 4 * q.numel() < n * n


# ---- what torch needs of it


@modes
def test_opcheck(causal, normalize):
    tensors = operands(CHUNK + 2, h=4, g=2)
    leaves = [x.clone().requires_grad_() for x in tensors]
    torch.library.opcheck(linear_attention, (*leaves, causal, normalize, EPS))
    grad = torch.ones(2, 4, CHUNK + 2, 3, dtype=torch.float64)
    torch.library.opcheck(linear_attention_backward, (grad, *tensors, causal, normalize, EPS))


def test_second_derivative_is_refused():
    tensors = operands(4, grad=True)
    out = linear_attention(*tensors, True, True, EPS)
    (dq,) = torch.autograd.grad(out.sum(), tensors[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dq.sum().backward()


@modes
def test_vmap(causal, normalize):
    q, k, v = operands(11, b=3)
    q5 = torch.stack([q * (i + 1) for i in range(5)], 1)

    def f(q, k, v):
        return linear_attention(q, k, v, causal, normalize, EPS)

    ours = torch.vmap(f, in_dims=(1, None, None))(q5, k, v)
    expected = torch.stack([f(q5[:, i], k, v) for i in range(5)])
    close([ours], [expected], 1e-12)

    # Several cotangents at once map the backward op, and only over its first operand.
    q.requires_grad_()
    out = f(q, k, v)
    cotangents = torch.stack([torch.ones_like(out), out.detach()])
    (ours,) = torch.autograd.grad(out, q, cotangents, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(out, q, c, retain_graph=True)[0] for c in cotangents]
    close([ours], [torch.stack(expected)], 1e-12)


class Mixer(torch.nn.Module):
    """A layer around the op, so that there is a graph to capture."""

    def forward(self, x):
        q, k, v = (x * s for s in (1.0, 2.0, 3.0))
        return linear_attention(q.exp(), k.exp(), v, True, True, EPS) + x


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(Mixer(), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (70, 5):
        x = torch.randn(2, 2, n, 4, dtype=torch.float64, requires_grad=True)
        close(with_grads(compiled, [x]), with_grads(Mixer(), [x]), 1e-12)


def test_export_with_a_dynamic_length():
    x = torch.randn(2, 2, 70, 4)
    n = torch.export.Dim("n", min=2, max=4096)
    program = torch.export.export(Mixer(), (x,), dynamic_shapes=({2: n},))
    assert "subquad.linear_attention.default" in program.graph_module.code
    y = torch.randn(2, 2, 131, 4)
    assert torch.equal(program.module()(y), Mixer()(y))


def test_flops():
    b, h, g, n, d, e = 2, 4, 2, 2 * CHUNK + 10, 8, 6
    tensors = operands(n, b=b, h=h, g=g, d=d, e=e, grad=True)

    def count(causal, normalize, backward=False):
        with FlopCounterMode(display=False) as counter:
            out = linear_attention(*tensors, causal, normalize, EPS)
            if backward:
                out.sum().backward()
        return counter.get_total_flops()

    # Two products with the state; in a chunk, two with its scores; the normaliser is a column.
    pairs = 2 * CHUNK**2 + 10**2
    assert count(False, False) == 2 * b * (h + g) * n * d * e
    assert count(False, True) == 2 * b * (h + g) * n * d * (e + 1)
    assert count(True, False) == 2 * b * ((h + g) * n * d * e + h * pairs * (d + e))
    # Backward, not causal: the state, dq, dS, dk and dv.
    assert count(False, False, True) - count(False, False) == 2 * b * (3 * g + 2 * h) * n * d * e


@modes
def test_the_flop_formulas_count_the_products_done(causal, normalize):
    """Against the matrix products that the kernels issue, in place or not."""
    q, k, v = operands(CHUNK * 2 + 10, h=4, g=2)
    grad = torch.ones(2, 4, CHUNK * 2 + 10, 3, dtype=torch.float64)
    aten = torch.ops.aten

    def added_product(_, a, b, *args, out_shape=None, **kwargs):
        return 2 * a[0] * a[1] * a[2] * b[2]

    for kernel, op, args in [
        (kernels.forward, linear_attention, (q, k, v)),
        (kernels.backward, linear_attention_backward, (grad, q, k, v)),
    ]:
        args = (*args, causal, normalize, EPS)
        with FlopCounterMode(display=False, custom_mapping={aten.baddbmm_: added_product}) as done:
            kernel(*args)
        with FlopCounterMode(display=False) as formula:
            op(*args)
        assert formula.get_total_flops() == done.get_total_flops()


# ---- what it refuses


@pytest.mark.parametrize(
    "q, k, v, causal, sentence",
    [
        ((2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), False, r"q has 3 axes where q is \[b, h, n, d\]"),
        ((2, 2, 3, 4), (1, 2, 3, 4), (2, 2, 3, 4), False, "batch sizes .* differ; expand them"),
        ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 5, 4), False, "each key needs its value"),
        ((1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 4), False, "as many features .* q, 4, as in k, 5"),
        ((1, 3, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), False, "3 heads .* over 2 key heads"),
        ((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4), True, "not 3 and 5; pass equal lengths"),
    ],
    ids=["rank", "batch", "values", "features", "heads", "causal-lengths"],
)
def test_wrong_shapes_are_refused_with_a_sentence(q, k, v, causal, sentence):
    with pytest.raises(ValueError, match=sentence):
        linear_attention(torch.ones(q), torch.ones(k), torch.ones(v), causal, False, EPS)


def test_integers_are_refused():
    q, k, v = operands(3)
    with pytest.raises(ValueError, match="convert k first"):
        linear_attention(q, k.long(), v, False, False, EPS)
