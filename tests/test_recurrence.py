"""linear_attention with decay, delta rule, states and segments: loop, chunks and body are one thing.

The oracle is the loop over tokens in `naive`, with autograd through it; the numpy meaning of the IR op
is another such loop, and its body the parallel form.
"""

import importlib
import itertools

import numpy as np
import pytest
import torch
from instances import graph_of, tensor
from largest import Largest

from subquad.backends import backend
from subquad.backends.linear_attention import (
    CHUNK,
    SMALL_CHUNK,
    kernels,
    linear_attention,
    linear_attention_backward,
    linear_attention_final,
    segments_of,
)
from subquad.ir import OPS, IRError, building, evaluate, parse, symbol
from subquad.ir.cost import cost
from subquad.ir.interpret import evaluate_body, meaning

EPS = 1e-6
F64 = torch.float64
KINDS = ("none", "head", "token", "channel")
SIDES = ("causal", "reverse", "both")
HEADS = ((2, 2, 2), (4, 2, 2), (2, 2, 4), (1, 2, 2))


def naive(q, k, v, causal, normalize, eps, decay=None, beta=None, state=None, segments=None, reverse=False):
    """The definition, token by token: the output and the last state."""
    h = max(x.shape[1] for x in (q, k, v))
    q, k, v = (x.repeat_interleave(h // x.shape[1], 1) for x in (q, k, v))
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1) if normalize else v
    (b, _, n, d), e = q.shape, v.shape[-1]
    g = q.new_zeros(b, h, n, 1)
    if decay is not None:
        g = g + {1: lambda: decay[:, None, None], 3: lambda: decay[..., None], 4: lambda: decay}[decay.ndim]()

    def run(order):
        S = q.new_zeros(b, h, d, e) if state is None else state
        out, before = [None] * n, None
        for t in order:
            keep = g[:, :, t].exp()[..., None]
            if segments is not None and before is not None:
                keep = keep * (segments[:, t] == segments[:, before])[:, None, None, None]
            S, u = S * keep, v[:, :, t]
            if beta is not None:
                u = beta[:, :, t, None] * (u - torch.einsum("bhde,bhd->bhe", S, k[:, :, t]))
            S = S + k[:, :, t, :, None] * u[:, :, None]
            out[t] = torch.einsum("bhde,bhd->bhe", S, q[:, :, t])
            before = t
        return (torch.stack(out, 2) if n else q.new_zeros(b, h, 0, e)), S

    if causal:
        out, last = run(range(n)[::-1] if reverse else range(n))
    elif decay is None and segments is None:
        out, last = q @ (k.mT @ v), None
    else:
        own = (q * k).sum(-1, keepdim=True) * v
        out, last = run(range(n))[0] + run(range(n)[::-1])[0] - own, None
    return (out[..., :-1] / (out[..., -1:] + eps) if normalize else out), last


class Case:
    """Operands of one combination, at random; tensors are q, k, v and which of the others there are."""

    def __init__(self, n, kind="token", delta=False, normalize=False, side="causal", state=False,
                 segments=False, heads=(2, 2, 2), b=2, d=5, e=3, dtype=F64, extreme=False):  # fmt: skip
        rng = torch.Generator().manual_seed(n + 7 * d)
        h = max(heads)

        def rand(*shape):
            return torch.rand(*shape, generator=rng, dtype=F64)

        q, k, v = (
            rand(b, heads[0], n, d),
            rand(b, heads[1], n, d) / (d if delta else 1),
            rand(b, heads[2], n, e),
        )
        shape = {"none": None, "head": (h,), "token": (b, h, n), "channel": (b, h, n, d)}[kind]
        decay = None if shape is None else -rand(*shape)
        if extreme and decay is not None:
            for value in (0.0, -100.0, float("-inf")):
                decay = torch.where(rand(*shape) < 0.2, torch.tensor(value, dtype=F64), decay)
        beta = rand(b, h, n) if delta else None
        first = rand(b, h, d, e + normalize) if state else None
        runs = (rand(b, n) < 0.1).cumsum(1) if segments else None
        operands = (q, k, v - 0.5, decay, beta, first)
        self.operands = [x if x is None else x.to(dtype).requires_grad_() for x in operands]
        self.segments, self.causal, self.reverse = runs, side != "both", side == "reverse"
        self.normalize = normalize

    @property
    def tensors(self):
        return [x for x in self.operands if x is not None]

    def call(self, function, operands=None):
        """The function on these operands."""
        q, k, v, *given = operands or self.operands
        return function(q, k, v, self.causal, self.normalize, EPS, *given, self.segments, self.reverse)

    def ours(self, operands=None):
        """Output and last state (None where there is none) by the custom op."""
        if self.causal:
            return self.call(linear_attention_final, operands)
        return self.call(linear_attention, operands), None

    def with_grads(self, results):
        """The results and the gradients of all operands, for one fixed cotangent each."""
        results = [x for x in results if x is not None]
        whole = [(torch.arange(x.numel()) % 17 - 8).to(x.dtype).view(x.shape) / 8 for x in results]
        wanted = [(x, c) for x, c in zip(results, whole) if x.requires_grad]  # a loop of no steps has none
        grads = [None] * len(self.tensors)
        if wanted:
            grads = torch.autograd.grad(
                [x for x, _ in wanted], self.tensors, [c for _, c in wanted], allow_unused=True
            )
        return *results, *(torch.zeros_like(x) if g is None else g for x, g in zip(self.tensors, grads))


def close(ours, theirs, tol=1e-12):
    """Every pair within tol of the larger of one and the greatest entry."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape, i
        if b.numel():
            gap = (a - b).abs().max()
            assert gap <= tol * max(1.0, b.abs().max()), f"result {i}: {gap}"


def combinations():
    """Every combination that is allowed, as keywords of `Case`."""
    flags = (False, True)
    for kind, delta, normalize, side, state, segments, heads in itertools.product(
        KINDS, flags, flags, SIDES, flags, flags, HEADS
    ):
        if (delta and (normalize or side == "both")) or (state and side == "both"):
            continue
        yield dict(kind=kind, delta=delta, normalize=normalize, side=side, state=state, segments=segments,
                   heads=heads)  # fmt: skip


ALL = list(combinations())
ONCE = [choice for i, choice in enumerate(ALL) if i % 4 == i // 4 % 4]
"""Each but for the heads, which take turns."""
LENGTHS = (0, 1, 3, CHUNK - 1, CHUNK, CHUNK + 1, 257)


# ---- what it computes


def test_every_combination_is_the_loop():
    """At some length: all of them, with all heads, are in the slow suite."""
    for i, choice in enumerate(ONCE):
        for n in (3 + i % 17, (0, 1, SMALL_CHUNK + 3)[i % 3]):
            case = Case(n, **choice)
            close(case.with_grads(case.ours()), case.with_grads(case.call(naive)))


@pytest.mark.slow
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_combination_is_the_loop_at_every_length(kind, n):
    for choice in ALL:
        if choice["kind"] == kind:
            case = Case(n, **choice)
            close(case.with_grads(case.ours()), case.with_grads(case.call(naive)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delta", [False, True])
def test_a_long_sequence_is_the_loop(kind, delta):
    case = Case(257, kind, delta, state=True, segments=kind == "token", heads=(2, 2, 4))
    close(case.with_grads(case.ours()), case.with_grads(case.call(naive)))


def as_graph(case, n=None):
    """The IR op on the operands, and those as arrays."""
    tensors = [*case.operands, case.segments]
    types = [tensor("i64" if x.dtype is torch.int64 else "f64", *x.shape) for x in tensors if x is not None]

    def function(*values):
        left = iter(values)
        operands = [x if x is None else next(left) for x in tensors]
        attrs = dict(causal=case.causal, normalize=case.normalize, eps=EPS, reverse=case.reverse)
        return OPS["linear_attention"](*operands, final=case.causal, **attrs)

    return graph_of(function, *types), [None if x is None else x.detach() for x in tensors]


@pytest.mark.parametrize("extreme", [False, True])
def test_meaning_body_and_lowering_agree(extreme):
    for i, choice in enumerate(ONCE[extreme::2]):
        case = Case(1 + i % 6, extreme=extreme, **choice)
        graph, tensors = as_graph(case)
        assert str(parse(str(graph))) == str(graph)
        (op,) = {v.op for v in graph.outputs}
        arrays = [None if x is None else x.numpy() for x in tensors]
        body, given = evaluate_body(op, arrays), [x for x in tensors if x is not None]
        body = body if isinstance(body, tuple) else (body,)
        expected = [torch.from_numpy(x) for x in meaning(op, arrays, {})]
        close([torch.from_numpy(x.copy()) for x in body], expected)
        close(backend("eager").compile(graph)(given, {})[0], expected)
        close([x for x in case.call(naive) if x is not None], expected)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "kind, delta", [("none", False), ("head", False), ("token", False), ("token", True), ("channel", False)]
)
def test_chunks_and_spans_do_not_matter(kind, delta, side):
    if delta and side == "both":
        return
    case = Case(83, kind, delta, side=side, state=side != "both", segments=True)
    args = [x if x is None else x.detach() for x in case.operands]
    q, k, v, *given = args
    rest = (case.causal, False, EPS, *given, case.segments, case.reverse)
    grad, end = torch.ones(2, 2, 83, 3, dtype=F64), torch.ones(2, 2, 5, 3, dtype=F64)

    def everything(**cut):
        grads = kernels.backward(grad, q, k, v, *rest, end if case.causal else None, **cut)
        return [*kernels.forward(q, k, v, *rest, **cut), *(x for x in grads if x is not None)]

    expected = everything(chunk=83)
    for chunk, rows in [(7, 64), (24, 10_000), (1000, 1)]:
        close(everything(chunk=chunk, rows=rows), expected)


@pytest.mark.parametrize("kind, delta", list(itertools.product(KINDS, [False, True])))
def test_a_sequence_may_be_cut_anywhere(kind, delta):
    """Prefill, prefill on, decode token by token: the state carries everything."""
    case = Case(CHUNK + 9, kind, delta, normalize=not delta, state=True, heads=(2, 2, 4))
    whole, last = case.ours()
    q, k, v, decay, beta, state = case.operands
    pieces, at = [], 0
    for n in (1, 40, 29, 1, 1, 1):
        now = slice(at, at := at + n)
        cut = [None if x is None else x if x.ndim == 1 else x[:, :, now] for x in (q, k, v, decay, beta)]
        out, state = case.ours([*cut, state])
        pieces.append(out)
    assert at == CHUNK + 9
    close([torch.cat(pieces, 2), state], [whole, last])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_segments_are_sequences_of_their_own(kind, side):
    delta = side != "both"
    lengths = [5, 1, CHUNK, 30, 17]
    case = Case(sum(lengths), kind, delta, side=side, b=1)
    ends = torch.tensor([0, *itertools.accumulate(lengths)])
    case.segments = segments_of(ends, sum(lengths))
    whole = case.ours()[0]
    case.segments = None
    for start, end in itertools.pairwise(ends.tolist()):
        cut = [None if x is None else x if x.ndim == 1 else x[:, :, start:end] for x in case.operands[:5]]
        args = (case.causal, False, EPS, cut[3], cut[4])
        if side == "both" and kind == "none":
            alone = naive(*cut[:3], *args)[0]
        else:
            alone = linear_attention(*cut[:3], *args, reverse=case.reverse)
        close([whole[:, :, start:end]], [alone])


def test_segments_of():
    assert segments_of(torch.tensor([0, 2, 2, 5]), 7).tolist() == [[0, 0, 2, 2, 2, 3, 3]]
    assert segments_of(torch.tensor([0]), 2).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="integers along one axis"):
        segments_of(torch.tensor([0.0, 2.0]), 2)


@pytest.mark.parametrize("kind, delta", list(itertools.product(KINDS, [False, True])))
def test_padding_is_neutral(kind, delta):
    """Where k, v, decay and beta are 0; a decay that is constant goes on, so it has no padding."""
    if kind == "head":
        return
    case = Case(90, kind, delta, state=True)
    q, k, v, decay, beta, state = (None if x is None else x.detach().clone() for x in case.operands)
    padded = torch.zeros(90, dtype=torch.bool)
    padded[[0, 1, 40, 41, 42, 63, 64, 88, 89]] = True
    for x in (k, v, decay, beta):
        if x is not None:
            x[:, :, padded] = 0
    out, last = case.ours([q, k, v, decay, beta, state])
    kept = [None if x is None else x[:, :, ~padded] for x in (q, k, v, decay, beta)]
    expected, end = case.ours([*kept, state])
    close([out[:, :, ~padded], last], [expected, end])


@pytest.mark.parametrize("kind, delta", list(itertools.product(KINDS, [False, True])))
def test_later_tokens_change_no_earlier_output(kind, delta):
    case = Case(CHUNK + 40, kind, delta)
    whole = case.ours()[0]
    for n in (1, SMALL_CHUNK, CHUNK, CHUNK + 1):
        cut = [None if x is None else x if x.ndim == 1 else x[:, :, :n] for x in case.operands]
        close([whole[:, :, :n]], [case.ours(cut)[0]], 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_extreme_decays(kind, delta, dtype):
    """0, -100 and -inf, mixed: finite and right, forward and backward, in float32 too."""
    for side in SIDES[: 2 if delta else 3]:
        exact = Case(100, kind, delta, side=side, extreme=True)
        case = Case(100, kind, delta, side=side, extreme=True, dtype=dtype)
        ours = [x.double() for x in case.with_grads(case.ours())]
        assert all(x.isfinite().all() for x in ours)
        close(ours, exact.with_grads(exact.call(naive)), 1e-12 if dtype is F64 else 2e-5)


@pytest.mark.parametrize("value", [0.0, -100.0, float("-inf")])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_one_decay_everywhere(kind, value):
    for delta in (False, True):
        case = Case(70, kind, delta)
        case.operands[3] = torch.full_like(case.operands[3], value).requires_grad_()
        close(case.with_grads(case.ours()), case.with_grads(case.call(naive)))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_unwritten(kind, side):
    """Fresh memory full of NaN changes nothing: every result is written before it is read."""
    case = Case(75, kind, side == "causal", side=side, segments=True)
    expected = case.with_grads(case.ours())
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives with NaN
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(9).isnan().all()
    try:
        ours = case.with_grads(case.ours())
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_is_one_rounding_of_float64(kind, delta, dtype):
    case = Case(100, kind, delta, state=True, dtype=dtype)
    high = Case(100, kind, delta, state=True)
    high.operands = [None if x is None else x.detach().double().requires_grad_() for x in case.operands]
    ours = case.with_grads(case.ours())
    assert ours[1].dtype is torch.float32
    assert {x.dtype for x in ours} == {dtype, torch.float32}
    tol = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2e-5}[dtype]
    close([x.double() for x in ours], high.with_grads(high.call(naive)), tol)


# ---- what torch needs of it


@pytest.mark.parametrize("kind, delta, side, segments", [
    ("head", False, "both", False), ("token", True, "reverse", True), ("channel", False, "causal", False),
])  # fmt: skip
def test_opcheck(kind, delta, side, segments):
    case = Case(21, kind, delta, side=side, segments=segments, state=side != "both", heads=(2, 2, 4))
    q, k, v, *given = case.operands
    args = (q, k, v, case.causal, False, EPS, *given, case.segments, case.reverse)
    torch.library.opcheck(linear_attention, args)
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in args]
    grad, end = torch.ones(2, 4, 21, 3, dtype=F64), None
    if case.causal:
        torch.library.opcheck(linear_attention_final, args)
        end = torch.ones(2, 4, 5, 3, dtype=F64)
    torch.library.opcheck(linear_attention_backward, (grad, *detached, end))


@pytest.mark.parametrize("kind", KINDS)
def test_vmap(kind):
    case = Case(11, kind, not (normalize := kind == "none"), normalize, state=True)
    many = [torch.stack([x.detach() * (1 + i / 4) for i in range(3)]) for x in case.tensors]

    def f(*tensors):
        left = iter(tensors)
        return case.ours([None if x is None else next(left) for x in case.operands])

    expected = [f(*(x[i] for x in many)) for i in range(3)]
    close(torch.vmap(f)(*many), [torch.stack(x) for x in zip(*expected)])
    only = torch.vmap(f, in_dims=(0, *(None,) * (len(many) - 1)))(many[0], *case.tensors[1:])
    close([only[0][1]], [f(many[0][1], *case.tensors[1:])[0]])

    out = f(*case.tensors)[0]
    cotangents = torch.stack([torch.ones_like(out), out.detach()])
    keep = dict(retain_graph=True, allow_unused=True)
    ours = torch.autograd.grad(out, case.tensors, cotangents, is_grads_batched=True, **keep)
    each = [torch.autograd.grad(out, case.tensors, c, **keep) for c in cotangents]
    close(ours, [torch.stack(x) for x in zip(*each)])


class Mixer(torch.nn.Module):
    """Gated delta rule with a state in and out."""

    def forward(self, x, state):
        decay, beta = -x.exp().mean(-1), x.sigmoid().mean(-1)
        out, state = linear_attention_final(x, x.tanh() / 3, x, True, False, 0.0, decay, beta, state)
        return out + x, state


def test_compile_and_export():
    torch._dynamo.reset()
    state = torch.zeros(2, 2, 4, 4, dtype=F64)
    compiled = torch.compile(Mixer(), fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (70, 5):
        x = torch.randn(2, 2, n, 4, dtype=F64, requires_grad=True)
        results = []
        for f in (compiled, Mixer()):
            out, last = f(x, state)
            results.append([out, last, *torch.autograd.grad(out.sum() + last.sum(), x)])
        close(*results)
    n = torch.export.Dim("n", min=2, max=4096)
    program = torch.export.export(Mixer(), (x.detach(), state), dynamic_shapes=({2: n}, None))
    assert "subquad.linear_attention_final.default" in program.graph_module.code
    y = torch.randn(2, 2, 33, 4, dtype=F64)
    close(program.module()(y, state), Mixer()(y, state))


# ---- what it costs


@pytest.mark.parametrize("kind", KINDS)
def test_memory_and_flops_are_linear_in_tokens(kind):
    """The count is proportional to n, of the IR in symbols; no tensor has n x n entries."""
    n, b, d = symbol("n"), 2, 8
    shape = {"none": None, "head": (4,), "token": (b, 4, n), "channel": (b, 4, n, d)}[kind]
    types = [tensor("f32", b, 4, n, d)] * 3 + ([] if shape is None else [tensor("f32", *shape)])
    for causal in (True, False):
        graph = graph_of(lambda *x, c=causal: OPS["linear_attention"](*x, causal=c, normalize=True), *types)
        flops = cost(graph).flops
        assert flops == n * (flops // n)

    case = Case(2048, kind, heads=(1, 1, 1), b=1, d=32, e=32, dtype=torch.float32)
    args = [None if x is None else x.detach() for x in case.operands]
    for causal in (True, False):
        rest = (causal, False, EPS, *args[3:])
        with Largest() as seen:
            out, _ = kernels.forward(*args[:3], *rest)
            kernels.backward(torch.ones_like(out), *args[:3], *rest)
        assert seen.size < 5 * args[0].numel() < 2048 * 2048


# ---- what it refuses

WRONG = [
    (dict(beta=(1, 2, 4), causal=False), "belongs to a recurrence from one side", "requires causal=True"),
    (dict(beta=(1, 2, 4), normalize=True), "no sum of weights", "no sum of weights"),
    (dict(state=(1, 2, 3, 5), causal=False), "belongs to a recurrence", "requires causal=True"),
    (dict(reverse=True, causal=False), "belongs to a recurrence", "requires causal=True"),
    (dict(decay=(1, 4)), r"decay \[1, 4\] is none of", r"decay \[1,4\] is not"),
    (dict(decay=(2,), k=(1, 2, 7, 3), v=(1, 2, 7, 5), causal=False), "as many queries", "as many queries"),
    (dict(decay=(3,)), r"decay \[3\] is none of", r"decay \[3\] is not"),
    (dict(decay=(1, 2, 4, 5)), "is none of", "is not"),
    (dict(beta=(1, 2, 4, 3)), r"beta .* is none of \[b, H, n\]", r"beta \[1,2,4,3\] is not"),
    (dict(state=(1, 2, 3, 5), normalize=True), "one more with normalize", r"is not \[1,2,3,6\]"),
    (dict(segments=(4,)), r"segments \[4\] is none of", r"segments \[4\] is not"),
    (dict(k=(1, 2, 4, 3), v=(1, 3, 4, 5)), "evenly over 2", "a multiple of each"),
]


@pytest.mark.parametrize(
    "given, sentence, short", WRONG, ids=lambda x: ",".join(x) if type(x) is dict else ""
)
def test_what_does_not_fit_is_refused(given, sentence, short):
    shapes = dict(q=(1, 2, 4, 3), k=(1, 2, 4, 3), v=(1, 2, 4, 5)) | {
        name: x for name, x in given.items() if isinstance(x, tuple)
    }
    flags = dict(causal=True, normalize=False) | {n: x for n, x in given.items() if isinstance(x, bool)}
    tensors = {n: torch.zeros(s, dtype=torch.int64 if n == "segments" else F64) for n, s in shapes.items()}
    with pytest.raises(ValueError, match=sentence):
        linear_attention(eps=0.0, **tensors, **flags)
    with building(), pytest.raises(IRError, match=short):
        names = ("q", "k", "v", "decay", "beta", "state", "segments")
        types = [
            tensor("i64" if n == "segments" else "f64", *shapes[n]) if n in shapes else None for n in names
        ]
        values = [t and OPS["input"](name=n, type=t) for n, t in zip(names, types)]
        OPS["linear_attention"](*values, **flags)


def test_a_final_state_needs_one_side_and_segments_integers():
    x = torch.ones(1, 1, 3, 2)
    with pytest.raises(ValueError, match="final belongs to a recurrence"):
        linear_attention_final(x, x, x, False, False)
    with pytest.raises(ValueError, match="told apart by integers"):
        linear_attention(x, x, x, True, False, segments=torch.ones(1, 3))
    with pytest.raises(ValueError, match="convert beta first"):
        linear_attention(x, x, x, True, False, beta=torch.ones(1, 1, 3, dtype=torch.int64))


def test_the_delta_rule_has_a_body_for_known_lengths_only():
    n = symbol("n")
    types = [tensor("f64", 1, 2, n, 4)] * 3 + [tensor("f64", 1, 2, n)]
    graph = graph_of(
        lambda q, k, v, b: OPS["linear_attention"](q, k, v, None, b, causal=True, normalize=False), *types
    )
    (out,) = graph.outputs
    assert out.shape == (1, 2, n, 4)
    x = [np.full((1, 2, 3, 4), 0.25)] * 3
    (result,), _ = evaluate(graph, [*x, np.ones((1, 2, 3))])
    assert result.shape == (1, 2, 3, 4)
    with pytest.raises(IRError, match="needs a number of tokens, not n"):
        evaluate_body(out.op, [*x, np.ones((1, 2, 3))])


# ---- what others say it is


def references():
    """name: (module, function, layout is [b, t, h, d], names of operands after q, k, v)."""
    base = "fla.ops."
    return {
        ("token", False): (base + "simple_gla.naive", "naive_recurrent_simple_gla", True, "g"),
        ("channel", False): (base + "gla.naive", "naive_recurrent_gla", True, "gk"),
        ("none", True): (base + "delta_rule.naive", "delta_rule_recurrence", False, ""),
        ("token", True): (base + "gated_delta_rule.naive", "naive_recurrent_gated_delta_rule", True, "g"),
        ("channel", True): (base + "kda.naive", "naive_recurrent_kda", True, "g"),
    }


@pytest.mark.parametrize("kind, delta", list(references()))
def test_agrees_with_flash_linear_attention(kind, delta):
    """Where fla-core happens to be installed and imports (it needs a Triton that it knows)."""
    module, name, tokens_first, decays = references()[kind, delta]
    try:
        reference = getattr(importlib.import_module(module), name)
    except Exception as error:
        pytest.skip(f"no {module}: {type(error).__name__}")
    case = Case(CHUNK + 5, kind, delta, state=True, dtype=torch.float32)
    q, k, v, decay, beta, state = (None if x is None else x.detach() for x in case.operands)
    named = {decays: decay} if decays else {}
    if delta:
        named["beta"] = beta
    tensors = {"q": q, "k": k, "v": v, **named}
    if tokens_first:
        tensors = {n: x.transpose(1, 2) for n, x in tensors.items()}
    out, last = reference(**tensors, initial_state=state, output_final_state=True)
    out = out.transpose(1, 2) if tokens_first else out
    close(case.ours([q * 5**-0.5, k, v, decay, beta, state]), [out, last], 2e-6)


def test_agrees_with_the_retention_of_flash_linear_attention():
    """Constant decays 1 - 2^(-5 - h), in parallel form."""
    try:
        from fla.ops.retention.naive import naive_retention
    except Exception as error:
        pytest.skip(f"no fla.ops.retention: {type(error).__name__}")
    q, k, v = (x.detach() for x in Case(70, "none", dtype=torch.float32).operands[:3])
    decay = torch.log1p(-(2.0 ** (-5.0 - torch.arange(2.0))))
    ours = linear_attention(q * 5**-0.5, k, v, True, False, decay=decay)
    close([ours], [naive_retention(q, k, v)], 2e-6)
