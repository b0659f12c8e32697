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

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import Blocks, Span
from .decay import Channel, Decay, Shared, times

__all__ = ["Gradients", "Sweep"]


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


def add_product(x: Tensor, a: Tensor, b: Tensor, factor: Tensor | None) -> None:
    """x += (a @ b) times factor, in place."""
    if factor is None:
        x.baddbmm_(a, b)
    else:
        blocks = (-1, factor.shape[1])
        x.unflatten(0, blocks).addcmul_((a @ b).unflatten(0, blocks), factor)


def scan(
    carry: Tensor | None, state: Tensor, added: Tensor | None, u: Tensor, rows: Tensor | None,
    columns: Tensor, back: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """S <- carry S + added + columns^T (u + rows S) over the m chunks of a span.

    state [s, d, e]; added [m * s, d, e]; u [m * s, c, e]; rows and columns [m * s, c, d]. Returns
    the states [m + 1, s, d, e] in the order of the tokens, so the first is the last where back, and
    u + rows S. rows None: u stays.
    """
    s = state.shape[0]
    m = u.shape[0] // s
    states = state.new_empty(m + 1, *state.shape)
    step, first = (-1, m) if back else (1, 0)
    factors = None if carry is None else carry.expand(m, -1, -1, -1).unbind()
    order = range(m)[::step]
    states[first] = state
    if rows is None:
        after = states[:-1] if back else states[1:]
        torch.bmm(columns.mT, u, out=after.flatten(0, 1))
        for i in order:
            at = i + 1 if back else i
            if factors is None:
                states[at + step] += states[at]
            else:
                states[at + step].addcmul_(states[at], factors[i])
    else:
        columns, rows = columns.unflatten(0, (m, s)), rows.unflatten(0, (m, s))
        u = u.unflatten(0, (m, s)).clone()
        added = None if added is None else added.unflatten(0, (m, s))
        for i in order:
            now = states[i + 1 if back else i]
            u[i].baddbmm_(rows[i], now)
            left = now if factors is None else now * factors[i]
            left = left if added is None else left + added[i]
            torch.baddbmm(left, columns[i].mT, u[i], out=states[i if back else i + 1])
        u = u.flatten(0, 1)
    return states, u


class Sweep:
    """The recurrence from one side over operands with four axes, decay and beta [b, H, n, 1 or d].

    decay may also be [H, 1, 1]: constant. strict: a token does not see itself (nor beta). resets:
    bool [b, n], where nothing that was before is left.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, beta: Tensor | None,
                 resets: Tensor | None, cut: Blocks, ones: bool, strict: bool = False):  # fmt: skip
        self.q, self.k, self.v, self.decay, self.beta, self.resets = q, k, v, decay, beta, resets
        self.cut, self.ones, self.strict = cut, ones, strict
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

    def load(self, span: Span, queries: bool = True) -> Chunks:
        """Read a span; without its queries where only states are wanted."""
        k, v = self.cut.read(self.k, span), self.cut.read(self.v, span)
        q = self.cut.read(self.q, span) if queries else k
        if self.ones:
            v = torch.nn.functional.pad(v, (0, 1), value=1.0)
        x = Chunks(q, k, v, self.decayed(span))
        if self.beta is not None:
            x.beta = self.cut.read(self.beta, span)
            x.pairs = x.decay.scores(k, k).tril_(-1)
            x.solve = unit_inverse(x.beta * x.pairs)
            x.U, x.W = x.solve @ (x.beta * v), x.solve @ (times(k, x.decay.into) * -x.beta)
        return x

    def states(self, x: Chunks, state: Tensor) -> tuple[Tensor, Tensor]:
        """The states before each chunk and after all, [m + 1, s, d, e], and the rows u."""
        k = times(x.k, x.decay.out)
        if x.U is None or x.W is None:
            return scan(x.decay.carry, state, None, x.v, None, k)
        return scan(x.decay.carry, state, None, x.U, x.W, k)

    def seen(self, scores: Tensor) -> Tensor:
        """Scores of a query and a key that count."""
        if self.strict:
            scores.diagonal(0, 1, 2).zero_()
        return scores

    def run(self, state: Tensor, marks: list[Tensor] | None = None,
            wanted: bool = True) -> Iterator[tuple[Span, Tensor | None, Tensor]]:  # fmt: skip
        """(span, its rows of output if wanted, state after it); marks: filled with those before."""
        for span in self.cut.spans():
            if marks is not None:
                marks.append(state)
            x = self.load(span, wanted)
            states, u = self.states(x, state)
            state, out = states[-1], None
            if wanted:
                out = torch.bmm(times(x.q, x.decay.into), states[:-1].flatten(0, 1))
                out.baddbmm_(self.seen(x.decay.scores(x.q, x.k)), u)
            yield span, out, state

    def pull(self, grad: Tensor, dstate: Tensor, marks: list[Tensor], into: Gradients) -> Tensor:
        """Gradients of the operands, from those of the output and of the last state; of the first."""
        for span, mark in zip(reversed(self.cut.spans()), reversed(marks)):
            x = self.load(span)
            states, u = self.states(x, mark)
            dstate = self._pull(span, x, states, u, self.cut.read(grad, span), dstate, into)
        return dstate

    def _pull(self, span: Span, x: Chunks, states: Tensor, u: Tensor, g: Tensor, dstate: Tensor,
              into: Gradients) -> Tensor:  # fmt: skip
        q, k, decay = x.q, x.k, x.decay
        before, after = states[:-1].flatten(0, 1), states[1:].flatten(0, 1)
        met, left = times(q, decay.into), times(k, decay.out)
        scores = self.seen(decay.scores(q, k))
        dscores = self.seen(g @ u.mT)
        dq, column = decay.pull(dscores, q, k)
        add_product(dq, g, before.mT, decay.into)
        if x.W is None:
            dstates, _ = scan(decay.carry, dstate, None, g, None, met, back=True)
            du = (scores.mT @ g).baddbmm_(left, dstates[1:].flatten(0, 1))
        else:
            added, du = met.mT @ g, scores.mT @ g
            dstates, du = scan(decay.carry, dstate, added, du, left, x.W, back=True)
        dstate, dstates = dstates[0], dstates[1:].flatten(0, 1)
        add_product(column, u, dstates.mT, decay.out)
        dv, row, dbeta = (du, None, None) if x.W is None else self._pull_delta(x, before, du, column)
        self.cut.write(into.q, span, dq, into.add)
        self.cut.write(into.k, span, column if row is None else column + row, into.add)
        self.cut.write(into.v, span, dv[..., :-1] if self.ones else dv, into.add)
        if into.beta is not None and dbeta is not None:
            self.cut.write(into.beta, span, dbeta, into.add)
        if into.decay is not None and decay.carry is not None:
            dsums = (q * dq).addcmul_(k, column if row is None else column - row, value=-1)
            dsums[:, -1] += (after * dstates).sum(-1)  # all that is left at the end passed through it
            if decay.carry.shape[2] == 1:
                dsums = dsums.sum(-1, keepdim=True)
            self.cut.write(into.decay, span, dsums.flip(1).cumsum(1).flip(1), into.add)
        return dstate

    def _pull_delta(self, x: Chunks, states: Tensor, du: Tensor,
                    column: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients of v, of k where earlier tokens meet it, and of beta; column is added to."""
        assert x.beta is not None and x.solve is not None and x.pairs is not None
        assert x.U is not None and x.W is not None
        dW, dU = x.solve.mT @ (du @ states.mT), x.solve.mT @ du
        row = -times(dW, x.decay.into)
        dbeta = (dU * x.v).sum(-1, keepdim=True) + (row * x.k).sum(-1, keepdim=True)
        row = row * x.beta
        dlower = (dW @ x.W.mT).baddbmm_(dU, x.U.mT).neg_().tril_(-1)
        dbeta = dbeta + (dlower * x.pairs).sum(-1, keepdim=True)
        rows, columns = x.decay.pull(dlower * x.beta, x.k, x.k)
        column += columns
        return x.beta * dU, row + rows, dbeta
