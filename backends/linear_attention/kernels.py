"""Forward and backward of the op, on operands that have been checked; what `ops` registers.

Chunk sizes were chosen with `bench_linear_attention.py --chunks` on Zen 5 cores, float32. oneDNN's float32
product is twice MKL's there, but torch reaches it for one matrix at a time or as a grouped convolution, and
for batches of chunks both were slower than torch.bmm: 2 to 91 GFLOP/s against 184.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from ...ir.ops.linear_attention import CHUNK, SMALL_CHUNK
from .blocks import Blocks
from .recurrence import Gradients, Kept, Sweep

__all__ = ["CHUNK", "SMALL_CHUNK", "backward", "final_dtype", "forward"]

ROWS = 2048
"""Rows of work, tokens x batch x heads, taken at once: what is between products stays in a core's cache.
A head of as many tokens is worked on alone, and then nothing of it has to be copied."""


def final_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of states and sums: float32, or float64 where an operand is float64."""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


class Problem:
    """What both directions share. Operands as in `linear_attention`."""

    def __init__(self, q, k, v, causal, normalize, eps, decay, beta, state, segments, reverse,
                 chunk=None, rows=None):  # fmt: skip
        self.q, self.k, self.v, self.state, self.segments = q, k, v, state, segments
        self.causal, self.normalize, self.eps = causal, normalize, eps
        self.dtype = final_dtype(q, k, v, decay, beta, state)
        self.heads = max(x.shape[1] for x in (q, k, v))
        plain = decay is None and beta is None and state is None and segments is None
        # Query heads over one state share its products; whatever differs by head forbids that.
        self.states = max(k.shape[1], v.shape[1]) if plain else self.heads
        if decay is not None and decay.ndim < 4:
            decay = decay[:, None, None] if decay.ndim == 1 else decay[..., None]
        self.decay, self.beta = decay, None if beta is None else beta[..., None]
        self.once = not causal and decay is None and segments is None
        channel = decay is not None and decay.ndim == 4 and decay.shape[3] > 1
        self.chunk = chunk or (SMALL_CHUNK if channel or beta is not None else CHUNK)
        # Away from the CPU a launch costs more than a cache miss (this factor is not measured).
        self.rows = rows or (ROWS if q.device.type == "cpu" else 32 * ROWS)
        # Without decays bfloat16 products keep the result within one rounding; rounded decays would not.
        low = {q.dtype, k.dtype, v.dtype} == {torch.bfloat16} and self.dtype == torch.float32 and q.is_cpu
        bare = decay is None and beta is None and segments is None and not normalize
        self.narrow = low and bare and torch.cpu._is_avx512_bf16_supported()
        self.directions = [bool(reverse)] if causal else [False, True]

    @property
    def zeros(self) -> Tensor:
        """The state [b * states, d, e (+ 1)] before any token."""
        e = self.v.shape[3] + self.normalize
        return self.q.new_zeros(self.q.shape[0] * self.states, self.k.shape[3], e, dtype=self.dtype)

    def first(self) -> Tensor:
        """The state that was given, or zeros."""
        return self.zeros if self.state is None else self.state.to(self.dtype).flatten(0, 1)

    def parts(self, *results: Tensor | None) -> Iterator[tuple[Problem, list[Tensor | None]]]:
        """Each head of each batch with its results, where one is work enough and lies by itself."""
        alone = self.beta is None and self.k.shape[1] == self.v.shape[1] == self.states
        if not alone or self.q.shape[2] < self.rows:
            yield self, list(results)
            return
        for i, j in itertools.product(range(self.q.shape[0]), range(self.states)):

            def one(x: Tensor | None, i: int = i, j: int = j) -> Tensor | None:
                if x is None or x.ndim == 3:  # a constant decay has no batch
                    return x if x is None else x[j : j + 1]
                r = x.shape[1] // self.states
                return x[i : i + 1, j * r : j * r + r]

            p = copy.copy(self)
            p.q, p.k, p.v, p.decay, p.state = map(one, (self.q, self.k, self.v, self.decay, self.state))
            p.segments = None if self.segments is None else self.segments[i : i + 1]
            p.heads, p.states = self.heads // self.states, 1
            yield p, [one(x) for x in results]

    def cut(self, n: int, back: bool = False, whole: bool = False) -> Blocks:
        """The blocks of a sequence of n tokens."""
        chunk = max(n, 1) if whole else self.chunk
        return Blocks(self.q.shape[0], n, self.states, chunk, self.rows, self.dtype, back)

    def sweep(self, back: bool, narrow: bool = False) -> Sweep:
        """The recurrence from one side; the second of two leaves out the diagonal."""
        resets = None
        if self.segments is not None:
            resets = torch.zeros_like(self.segments, dtype=torch.bool)
            change = self.segments[:, 1:] != self.segments[:, :-1]
            (resets[:, :-1] if back else resets[:, 1:]).copy_(change)
        second = back and not self.causal
        return Sweep(self.q, self.k, self.v, self.decay, self.beta, resets,
                     self.cut(self.q.shape[2], back), self.normalize, second, narrow)  # fmt: skip

    def finish(self, x: Tensor) -> Tensor:
        """[numerator, normaliser] to their quotient."""
        return x[..., :-1] / (x[..., -1:] + self.eps) if self.normalize else x

    def ones(self, v: Tensor) -> Tensor:
        """v with a last column of ones where there is a normaliser to sum."""
        return torch.nn.functional.pad(v, (0, 1), value=1.0) if self.normalize else v


def forward(q, k, v, causal, normalize, eps, decay=None, beta=None, state=None, segments=None,
            reverse=False, chunk=None, rows=None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output [b, H, n, e] in q's dtype and the last state [b, s, d, e (+ 1)]."""
    p = Problem(q, k, v, causal, normalize, eps, decay, beta, state, segments, reverse, chunk, rows)
    out = q.new_empty(q.shape[0], p.heads, q.shape[2], v.shape[3])
    last = p.first()
    if q.shape[0] == 0 or q.shape[2] == 0 or (out.numel() == 0 and not normalize):
        return out, last.unflatten(0, (q.shape[0], p.states))
    if p.once:
        rows_, keys = p.cut(q.shape[2], whole=True), p.cut(k.shape[2], whole=True)
        (every,), each = rows_.spans(), keys.spans()
        for span in each:
            last = keys.read(k, span).mT @ p.ones(keys.read(v, span))
        rows_.write(out, every, p.finish(rows_.read(q, every) @ last))
        return out, last.unflatten(0, (q.shape[0], p.states))
    if causal and q.shape[2] == 1:
        return _step(p, out)
    last = torch.empty_like(last).unflatten(0, (q.shape[0], p.states))
    for part, (rows_out, after) in p.parts(out, last):
        assert rows_out is not None and after is not None
        after.copy_(_forward_swept(part, rows_out).view(after.shape))
    return out, last


def _forward_swept(p: Problem, out: Tensor) -> Tensor:
    """Fill the output; the last state."""
    (back, *two), finish = p.directions, p.finish if p.normalize else None
    if not two:
        return p.sweep(back, p.narrow).run(p.first(), out, finish=finish)
    total = out
    if p.normalize or out.dtype != p.dtype:
        total = out.new_empty(*out.shape[:3], p.v.shape[3] + p.normalize, dtype=p.dtype)
    p.sweep(False, p.narrow).run(p.first(), total)
    last = p.sweep(True, p.narrow).run(p.first(), total, add=True)
    if total is not out:
        out.copy_(p.finish(total))
    return last


def _step(p: Problem, out: Tensor) -> tuple[Tensor, Tensor]:
    """One token, as in decoding: the recurrence as it is written."""
    cut = p.cut(1)
    (span,) = cut.spans()
    q, k, v = (cut.read(x, span) for x in (p.q, p.k, p.v))
    v, state = p.ones(v), p.first()
    if p.decay is not None:
        g = p.decay.expand(cut.b, -1, 1, 1) if p.decay.ndim == 3 else p.decay
        state = state * cut.read(g, span).exp().mT
    if p.beta is not None:
        v = cut.read(p.beta, span) * (v - k @ state)
    state = torch.baddbmm(state, k.mT, v)
    cut.write(out, span, p.finish(q @ state))
    return out, state.unflatten(0, (cut.b, p.states))


def backward(grad, q, k, v, causal, normalize, eps, decay=None, beta=None, state=None, segments=None,
             reverse=False, grad_state=None, chunk=None, rows=None) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of q, k, v, decay, beta and state, each like its operand; None for what is absent."""
    p = Problem(q, k, v, causal, normalize, eps, decay, beta, state, segments, reverse, chunk, rows)
    both = len(p.directions) > 1 and not p.once
    tensors = (q, k, v, p.decay, p.beta)
    like = [x if x is None or x.ndim == 4 else x.new_empty(()).expand(q.shape[0], p.heads, q.shape[2], 1)
            for x in tensors]  # fmt: skip
    # Two directions add up in the dtype of sums; so does a constant decay over its tokens.
    wide = [both or (x is not None and x.ndim == 3) for x in tensors]
    grads = [x if x is None else x.new_empty(x.shape, dtype=p.dtype if w else x.dtype)
             for x, w in zip(like, wide)]  # fmt: skip
    first = p.zeros if grad_state is None else grad_state.to(p.dtype, copy=True).flatten(0, 1)
    if q.shape[2] == 0 or k.shape[2] == 0 or first.shape[0] == 0:
        grads = [x if x is None else x.zero_() for x in grads]
    elif p.once:
        _backward_once(p, grad, grads)
    else:
        ends = first.unflatten(0, (q.shape[0], p.states))
        for part, (g, end, *into) in p.parts(grad, ends, *grads):
            assert g is not None and end is not None
            end.copy_(_backward_swept(part, g, into, end.flatten(0, 1)).view(end.shape))
    ddecay = grads[3]
    if ddecay is not None and p.decay is not None:
        ddecay.masked_fill_(p.decay == float("-inf"), 0)  # what is lost is lost at any rate near it
        grads[3] = ddecay.sum((0, 2, 3)) if decay.ndim == 1 else ddecay
    operands = (q, k, v, decay, beta, state)
    return tuple(
        None if x is None or like is None else x.reshape(like.shape).to(like.dtype)
        for x, like in zip((*grads, first), operands)
    )


def _through_normaliser(grad: Tensor, total: Tensor, eps: float) -> Tensor:
    """The gradient of [numerator, normaliser] from that of their quotient, in place of them."""
    down = total[..., -1:] + eps
    grad = grad.to(total.dtype) / down
    ddown = -(grad * total[..., :-1]).sum(-1, keepdim=True) / down
    total[..., :-1], total[..., -1:] = grad, ddown
    return total


def _backward_swept(p: Problem, grad: Tensor, grads: list[Tensor | None], dlast: Tensor) -> Tensor:
    """Fill the gradients; that of the first state. States are kept from one walk for the way back."""
    total = None
    if p.normalize:
        shape = p.q.shape[0], p.heads, p.q.shape[2], p.v.shape[3] + 1
        total = p.q.new_empty(shape, dtype=p.dtype)
    walks: list[tuple[Sweep, list[Kept]]] = [(p.sweep(back), []) for back in p.directions]
    for i, (sweep, kept) in enumerate(walks):
        sweep.run(p.first(), total, add=i > 0, kept=kept)
    if total is not None:
        grad = _through_normaliser(grad, total, p.eps)
    dfirst = dlast
    for i, (sweep, kept) in enumerate(walks):
        dq, dk, dv, ddecay, dbeta = grads
        assert dq is not None and dk is not None and dv is not None
        dfirst = sweep.pull(grad, dlast, kept, Gradients(dq, dk, dv, ddecay, dbeta, add=i > 0))
    return dfirst


def _backward_once(p: Problem, grad: Tensor, grads: list[Tensor | None]) -> None:
    rows, keys = p.cut(p.q.shape[2], whole=True), p.cut(p.k.shape[2], whole=True)
    (every,), (each,) = rows.spans(), keys.spans()
    q, g = rows.read(p.q, every), rows.read(grad, every)
    k, v = keys.read(p.k, each), p.ones(keys.read(p.v, each))
    state = k.mT @ v
    if p.normalize:
        g = _through_normaliser(g, q @ state, p.eps)
    dstate = q.mT @ g
    dq, dk, dv = grads[:3]
    assert dq is not None and dk is not None and dv is not None
    rows.write(dq, every, g @ state.mT)
    keys.write(dk, each, v @ dstate.mT)
    dvs = k @ dstate
    keys.write(dv, each, dvs[..., :-1] if p.normalize else dvs)
