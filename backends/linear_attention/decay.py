"""How much of a token is left at a later one, inside a chunk: two forms with one interface.

For log decays g_1 .. g_c of a chunk and G their running sum,

    into_i  = exp(G_i)              what is left at token i of the state before the chunk
    out_j   = exp(G_c - G_j)        what is left of token j after the chunk
    carry   = exp(G_c)              what is left after the chunk of the state before it
    scores  = sum_d a_id b_jd exp(G_id - G_jd) for j <= i, else 0

`Shared` has one decay for all d features of a head, and scores are a product times a matrix.
`Channel` has one for each feature. There the textbook product of a * exp(G) and b * exp(-G)
overflows, so halves of a chunk meet at the point between them, where both factors are at most one
(secondary chunking: Yang et al. 2023, arXiv:2312.06635), and few tokens are paired one by one; tokens
over which nothing falls below exp(MILD) take the textbook product. All factors are products and
quotients of exp(g), never differences of sums, so that exp(-inf) = 0 needs no care.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["Channel", "Decay", "Shared", "scale", "times"]

FLOOR = -800.0
"""A log decay that leaves exactly nothing, also in float64; -inf would make inf - inf."""
PAIRS = 8
"""Tokens that `Channel` pairs one by one."""
MILD = -60.0
"""Sum of log decays down to which exp(-sum) times a key is far from overflow, also in float32."""


def times(x: Tensor, factor: Tensor | None) -> Tensor:
    """The block x [m * s, c, d] times factor [m or 1, s, c, 1 or d]; None is one."""
    if factor is None:
        return x
    return (x.unflatten(0, (-1, factor.shape[1])) * factor).flatten(0, 1)


def scale(x: Tensor, factor: Tensor | None) -> Tensor:
    """The same in place."""
    if factor is not None:
        x.unflatten(0, (-1, factor.shape[1])).mul_(factor)
    return x


class Decay:
    """No decay, and the interface of decays; factors are [m or 1, s, c, 1 or d], None for one."""

    into: Tensor | None = None
    out: Tensor | None = None
    carry: Tensor | None = None
    """[m or 1, s, 1 or d, 1], to multiply states [m, s, d, e]."""

    def scores(self, a: Tensor, b: Tensor) -> Tensor:
        """Decayed products of the rows of a [k, r * c, d] with those of b [k, c, d] up to them."""
        return self.masked(a @ b.mT)

    def masked(self, scores: Tensor) -> Tensor:
        """Zero the future, in place, in [k, r * c, c]."""
        if scores.shape[2]:
            scores.unflatten(1, (-1, scores.shape[2])).tril_()
        return scores

    def pull(self, grad: Tensor, a: Tensor, b: Tensor, da: Tensor, db: Tensor) -> None:
        """Add the gradients of a and b to da and db, from that of scores, which is overwritten."""
        grad = self.masked(grad)
        da.baddbmm_(grad, b)
        db.baddbmm_(grad.mT, a)


class Shared(Decay):
    """One decay for all features: g [m * s, c, 1], or [s, c, 1] for all m chunks."""

    def __init__(self, g: Tensor, states: int):
        # Sums in float64: their differences are exponents, so an absolute error is a relative one.
        gone, sums = g < FLOOR, g.double()
        lost = gone.double().mul_(FLOOR).cumsum(1).unflatten(0, (-1, states))
        sums = sums.masked_fill(gone, 0).cumsum(1).unflatten(0, (-1, states))
        self.dtype = g.dtype
        if g.dtype == torch.float64:  # there a sum of both would miss the digits that a loss takes
            self.sums = [sums, lost]
        else:
            self.sums = [sums + lost]
        self.into = self._exp(self.sums)
        self.out = self._exp([x[:, :, -1:] - x for x in self.sums])
        self.carry = self.into[:, :, -1:]

    def _exp(self, terms: list[Tensor]) -> Tensor:
        return sum(terms[1:], terms[0]).to(self.dtype, copy=True).exp_()

    @functools.cached_property
    def matrix(self) -> Tensor:
        """exp(G_i - G_j) for j <= i, else 0: [m or 1, s, c, c]."""
        return self._exp([x - x.mT for x in self.sums]).tril_()

    def masked(self, scores: Tensor) -> Tensor:
        scores.unflatten(0, (-1, self.matrix.shape[1])).mul_(self.matrix)
        return scores


def _running(keep: Tensor) -> Tensor:
    """Running products along axis 1."""
    x = keep.clone()
    for i in range(1, x.shape[1]):
        x[:, i] *= x[:, i - 1]
    return x


def _left(keep: Tensor) -> Tensor:
    """What each token's successors along axis 1 leave of it."""
    x = torch.ones_like(keep)
    for i in reversed(range(x.shape[1] - 1)):
        torch.mul(x[:, i + 1], keep[:, i + 1], out=x[:, i])
    return x


class Channel(Decay):
    """One decay for each feature: g [m * s, c, d]."""

    def __init__(self, g: Tensor, states: int):
        self.keep, self.least = g.exp(), float(g.min()) if g.numel() else 0.0
        into, out = _running(self.keep), _left(self.keep)
        self.into, self.out = into.unflatten(0, (-1, states)), out.unflatten(0, (-1, states))
        self.carry = self.into[:, :, -1].unsqueeze(-1)

    def scores(self, a: Tensor, b: Tensor) -> Tensor:
        scores = a.new_empty(*a.shape[:2], b.shape[1])
        self._scores(scores, a, b, self.keep)
        return scores.tril_()

    def _scores(self, scores: Tensor, a: Tensor, b: Tensor, keep: Tensor) -> None:
        c = keep.shape[1]
        if c * self.least >= MILD:
            met = _running(keep)
            torch.bmm(a * met, (b / met).mT, out=scores)
            return
        if c > PAIRS:
            h = c // 2
            for part in (slice(h), slice(h, c)):
                self._scores(scores[:, part, part], a[:, part], b[:, part], keep[:, part])
            low, high = b[:, :h] * _left(keep[:, :h]), a[:, h:] * _running(keep[:, h:])
            scores[:, h:, :h] = high @ low.mT
            return
        for gap in range(c):  # b is what is left of each token, gap tokens later
            b = b if not gap else b[:, :-1] * keep[:, gap:]
            scores.diagonal(-gap, 1, 2).copy_((a[:, gap:] * b).sum(-1))

    def pull(self, grad: Tensor, a: Tensor, b: Tensor, da: Tensor, db: Tensor) -> None:
        self._pull(grad.tril_(), a, b, self.keep, da, db)

    def _pull(self, grad: Tensor, a: Tensor, b: Tensor, keep: Tensor, da: Tensor, db: Tensor) -> None:
        c = keep.shape[1]
        if c * self.least >= MILD:
            met = _running(keep)
            da.addcmul_(grad @ (b / met), met)
            db.addcdiv_(grad.mT @ (a * met), met)
            return
        if c > PAIRS:
            h = c // 2
            for part in (slice(h), slice(h, c)):
                self._pull(grad[:, part, part], a[:, part], b[:, part], keep[:, part],
                           da[:, part], db[:, part])  # fmt: skip
            left, met = _left(keep[:, :h]), _running(keep[:, h:])
            cross = grad[:, h:, :h]
            da[:, h:].addcmul_(cross @ (b[:, :h] * left), met)
            db[:, :h].addcmul_(cross.mT @ (a[:, h:] * met), left)
            return
        for gap in range(c):
            b = b if not gap else b[:, :-1] * keep[:, gap:]
            da[:, gap:].addcmul_(b, grad.diagonal(-gap, 1, 2).unsqueeze(-1))
        back = a[:, c:]
        for gap in reversed(range(c)):  # Horner's rule, from the farthest pairs inwards
            met = a[:, gap:] * grad.diagonal(-gap, 1, 2).unsqueeze(-1)
            met[:, :-1].addcmul_(keep[:, gap + 1 :], back)
            back = met
        db += back
