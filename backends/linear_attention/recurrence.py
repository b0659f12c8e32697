"""The recurrence in chunks, first to last, and its gradients, last to first.

    S_t = exp(g_t) S_{t-1} + k_t u_t^T        o_t = S_t^T q_t

u_t is v_t, or with the delta rule beta_t (v_t - S'^T k_t) where S' = exp(g_t) S_{t-1}. With a chunk's
`scores`, `into`, `out` and `carry` (see `decay`), the state S before it, and rows for tokens,

    o  = (q into) S + scores(q, k) u                            S_next = carry S + (k out)^T u
    u  = U + W S     U = T (beta v)    W = -T (beta k into)     T = (1 + beta strict scores(k, k))^-1

(WY form: Yang et al. 2024, arXiv:2406.06484). Of gradients with respect to k there are two kinds,
where k is met by earlier tokens (a row of scores, like q) and where it meets later ones (a column);
that of G is q dq + k dk_row - k dk_column, so decays cost no product of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import Blocks, Span
from .decay import Channel, Decay, Shared, scale, times

__all__ = ["Gradients", "Kept", "Sweep"]


@dataclass
class Chunks:
    """The blocks of one span, and what the delta rule makes of them."""

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Decay
    beta: Tensor | None = None
    pairs: Tensor | None = None
    """Strict scores(k, k)."""
    solve: Tensor | None = None
    U: Tensor | None = None
    W: Tensor | None = None


@dataclass
class Gradients:
    """Where the gradients of a sweep go; each like its operand, decay [b, H, n, 1 or d]."""

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor | None
    beta: Tensor | None
    add: bool = False
    """Whether to add to what is there."""


class Kept(NamedTuple):
    """What the gradients of a span need of the way there."""

    states: Tensor
    """Before each chunk and after all, [m + 1, s, d, e]."""
    u: Tensor
    solve: Tensor | None


def unit_inverse(lower: Tensor) -> Tensor:
    """(1 + lower)^-1 of strictly lower triangular [k, c, c], by halves: as stable as substitution."""
    c = lower.shape[1]
    if c <= 16:
        eye = torch.eye(c, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, eye, upper=False, unitriangular=True)
    h, inverse = c // 2, torch.zeros_like(lower)
    inverse[:, :h, :h] = top = unit_inverse(lower[:, :h, :h])
    inverse[:, h:, h:] = low = unit_inverse(lower[:, h:, h:])
    inverse[:, h:, :h] = -(low @ (lower[:, h:, :h] @ top))
    return inverse


def scan(
    carry: Tensor | None, state: Tensor, added: Tensor | None, u: Tensor, rows: Tensor | None,
    columns: Tensor, back: bool = False,
) -> Tensor:  # fmt: skip
    """S <- carry S + added + columns^T (u + rows S) over the m chunks of a span.

    state [s, d, e]; added [m * s, d, e]; u [m * s, c, e]; rows and columns [m * s, c, d]. Returns
    the states [m + 1, s, d, e] in the order of the tokens, so the first is the last where back; rows
    S is added to u in place. rows None: u stays.
    """
    s = state.shape[0]
    m = u.shape[0] // s
    states = state.new_empty(m + 1, *state.shape)
    states[-1 if back else 0] = state
    following = (states[:-1] if back else states[1:]).flatten(0, 1)
    each, order = states.unbind(), range(m)[:: -1 if back else 1]
    factors = None if carry is None else carry.expand(m, -1, -1, -1).unbind()
    if rows is None:
        if u.dtype == states.dtype:
            torch.bmm(columns.mT, u, out=following)
        else:
            following.copy_(columns.mT @ u)
        for i in order:
            now, then = (each[i + 1], each[i]) if back else (each[i], each[i + 1])
            then.add_(now) if factors is None else then.addcmul_(now, factors[i])
        return states
    following.zero_() if added is None else following.copy_(added)
    us, rows, columns = (x.unflatten(0, (m, s)).unbind() for x in (u, rows, columns.mT))
    for i in order:
        now, then = (each[i + 1], each[i]) if back else (each[i], each[i + 1])
        us[i].baddbmm_(rows[i], now)
        then.add_(now) if factors is None else then.addcmul_(now, factors[i])
        then.baddbmm_(columns[i], us[i])
    return states


class Sweep:
    """The recurrence from one side over operands with four axes, decay and beta [b, H, n, 1 or d].

    decay may also be [H, 1, 1]: constant. strict: a token does not see itself (nor beta). resets:
    bool [b, n], where nothing that was before is left. narrow: products in q's dtype.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, beta: Tensor | None,
                 resets: Tensor | None, cut: Blocks, ones: bool, strict: bool = False,
                 narrow: bool = False):  # fmt: skip
        self.q, self.k, self.v, self.decay, self.beta, self.resets = q, k, v, decay, beta, resets
        self.ones, self.strict = ones, strict
        self.cut = dataclasses.replace(cut, dtype=q.dtype) if narrow else cut
        self.constant: dict[int, Decay] = {}

    def decayed(self, span: Span) -> Decay:
        """The decay inside the chunks of a span."""
        if self.decay is None and self.resets is None:
            return Decay()
        cut, c = self.cut, span[2]
        s = cut.b * cut.states
        if self.resets is None and self.decay is not None and self.decay.ndim == 3:
            if c not in self.constant:
                g = self.decay.to(cut.dtype).repeat(cut.b, 1, 1).expand(s, c, 1)
                self.constant[c] = Shared(g, s)
            return self.constant[c]
        if self.decay is None:
            g = self.q.new_zeros((), dtype=cut.dtype).expand(cut.b, cut.states, cut.n, 1)
        else:
            g = self.decay
            g = g.expand(cut.b, cut.states, cut.n, 1) if g.ndim == 3 else g
        g = cut.read(g, span)
        if self.resets is not None:
            reset = cut.read(self.resets[:, None, :, None], span)
            g = g.masked_fill(reset != 0, float("-inf"))
        return (Shared if g.shape[2] == 1 else Channel)(g, s)

    def load(self, span: Span, queries: bool = True, solve: Tensor | None = None) -> Chunks:
        """Read a span; without its queries where only states are wanted. solve: if known already."""
        k, v = self.cut.read(self.k, span), self.cut.read(self.v, span)
        q = self.cut.read(self.q, span) if queries else k
        if self.ones:
            v = torch.nn.functional.pad(v, (0, 1), value=1.0)
        x = Chunks(q, k, v, self.decayed(span))
        if self.beta is not None:
            x.beta = self.cut.read(self.beta, span)
            x.pairs = x.decay.scores(k, k).tril_(-1)
            x.solve = unit_inverse(x.beta * x.pairs) if solve is None else solve
            x.U, x.W = x.solve @ (x.beta * v), x.solve @ (times(k, x.decay.into) * -x.beta)
        return x

    def seen(self, scores: Tensor) -> Tensor:
        """Scores of a query and a key that count."""
        if self.strict:
            scores.diagonal(0, 1, 2).zero_()
        return scores

    def run(self, state: Tensor, out: Tensor | None, add: bool = False, kept: list[Kept] | None = None,
            finish: Callable[[Tensor], Tensor] | None = None) -> Tensor:  # fmt: skip
        """Write the output, or add it, if `out` is given; the last state. kept: what `pull` needs."""
        for span in self.cut.spans():
            x = self.load(span, out is not None)
            u = x.v if x.U is None else x.U
            states = scan(x.decay.carry, state, None, u, x.W, times(x.k, x.decay.out))
            state = states[-1]
            if kept is not None:
                kept.append(Kept(states, u, x.solve))
            if out is not None:
                block = x.v.new_empty(0) if finish else self.cut.room(out, span, add)
                met, before = times(x.q, x.decay.into), states[:-1].flatten(0, 1)
                scores = self.seen(x.decay.scores(x.q, x.k))
                if block.dtype == before.dtype:
                    torch.bmm(met, before, out=block).baddbmm_(scores, u)
                else:  # one sum, and so one rounding
                    met, before = torch.cat([met, scores], 2), torch.cat([before.to(u.dtype), u], 1)
                    torch.bmm(met, before, out=block)
                self.cut.write(out, span, finish(block) if finish else block, add)
        return state

    def pull(self, grad: Tensor, dstate: Tensor, kept: list[Kept], into: Gradients) -> Tensor:
        """Gradients of the operands, from those of the output and of the last state; of the first."""
        for span in reversed(self.cut.spans()):
            was = kept.pop()
            dstate = self._pull(span, self.load(span, True, was.solve), was, grad, dstate, into)
        return dstate

    def _pull(self, span: Span, x: Chunks, was: Kept, grad: Tensor, dstate: Tensor,
              into: Gradients) -> Tensor:  # fmt: skip
        q, k, decay, cut, u = x.q, x.k, x.decay, self.cut, was.u
        before, after = was.states[:-1].flatten(0, 1), was.states[1:].flatten(0, 1)
        g = cut.read(grad, span)
        met, left = times(q, decay.into), times(k, decay.out)
        scores = self.seen(decay.scores(q, k))
        if x.W is None:
            dstates = scan(decay.carry, dstate, None, g, None, met, back=True)
            last = dstates[1:].flatten(0, 1)
            du = g.new_empty(0) if self.ones else cut.room(into.v, span, into.add)
            du = torch.bmm(scores.mT, g, out=du).baddbmm_(left, last)
        else:
            du = scores.mT @ g
            dstates = scan(decay.carry, dstate, met.mT @ g, du, left, x.W, back=True)
            last = dstates[1:].flatten(0, 1)
        dq = scale(torch.bmm(g, before.mT, out=cut.room(into.q, span, into.add)), decay.into)
        column = scale(torch.bmm(u, last.mT, out=cut.room(into.k, span, into.add)), decay.out)
        decay.pull(self.seen(torch.bmm(g, u.mT, out=scores)), q, k, dq, column)
        dv, row, dbeta = (du, None, None) if x.W is None else self._pull_delta(x, before, du, column)
        if into.decay is not None and decay.carry is not None:
            dsums = (q * dq).addcmul_(k, column if row is None else column - row, value=-1)
            dsums[:, -1] += (after * last).sum(-1)  # all that is left at the end passed through it
            if decay.carry.shape[2] == 1:
                dsums = dsums.sum(-1, keepdim=True)
            later = dsums.new_ones(span[2], span[2]).triu_()
            cut.write(into.decay, span, later @ dsums, into.add)
        cut.write(into.q, span, dq, into.add)
        cut.write(into.k, span, column if row is None else column + row, into.add)
        cut.write(into.v, span, dv[..., :-1] if self.ones else dv, into.add)
        if into.beta is not None and dbeta is not None:
            cut.write(into.beta, span, dbeta, into.add)
        return dstates[0]

    def _pull_delta(self, x: Chunks, states: Tensor, du: Tensor,
                    column: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients of v, of k where earlier tokens meet it, and of beta; column is added to."""
        assert x.beta is not None and x.solve is not None and x.pairs is not None
        assert x.U is not None and x.W is not None
        dW, dU = x.solve.mT @ (du @ states.mT), x.solve.mT @ du
        dlower = (dW @ x.W.mT).baddbmm_(dU, x.U.mT).neg_().tril_(-1)
        row = scale(dW, x.decay.into).neg_()
        dbeta = (dU * x.v).sum(-1, keepdim=True) + (row * x.k).sum(-1, keepdim=True)
        dbeta += (dlower * x.pairs).sum(-1, keepdim=True)
        row *= x.beta
        x.decay.pull(dlower.mul_(x.beta), x.k, x.k, row, column)
        return dU.mul_(x.beta), row, dbeta
