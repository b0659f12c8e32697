"""Tokens as blocks: what of a long sequence is worked on at once, and how it lies in memory.

A *span* is m consecutive chunks of c tokens. Of an operand [b, h, n, d] it is read as the block
[m * b * s, r * c, d]: chunk by chunk, with s heads that have a state of their own. An operand with
fewer heads is repeated to s; queries with r times as many lie stacked as r * c rows over the one
key head they share, which costs no copy of the keys and sums their gradients inside the product.
One head of one batch lies in memory as its block does, so it is read and written where it is.
Read backwards the last token comes first, so a recurrence from the right is one from the left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Blocks", "Span"]

Span = tuple[int, int, int]
"""Start, chunks, tokens in each chunk."""


@dataclass(frozen=True)
class Blocks:
    """How sequences of n tokens in a batch of b are cut; states: heads with a state of their own.

    rows: tokens x batch x heads in a block. dtype: what blocks are computed in.
    """

    b: int
    n: int
    states: int
    chunk: int
    rows: int
    dtype: torch.dtype
    back: bool = False

    def spans(self) -> list[Span]:
        """All tokens, in order; a shorter last chunk is a span of its own."""
        whole, rest = divmod(self.n, self.chunk)
        step = max(1, self.rows // max(1, self.chunk * self.b * self.states))
        spans = [(i * self.chunk, min(step, whole - i), self.chunk) for i in range(0, whole, step)]
        return spans + [(whole * self.chunk, 1, rest)] if rest else spans

    def _window(self, x: Tensor, span: Span) -> Tensor:
        """The tokens of a span, [b, h, n, d] -> a view [m, b, g, r, c, d], not yet turned round."""
        start, m, c = span
        x = x.narrow(2, self.n - start - m * c if self.back else start, m * c).unflatten(2, (m, c))
        g = min(x.shape[1], self.states)
        return x.unflatten(1, (g, x.shape[1] // g)).permute(3, 0, 1, 2, 4, 5)

    def read(self, x: Tensor, span: Span) -> Tensor:
        """The block [m * b * states, r * c, d] of a span."""
        w = self._window(x, span).to(self.dtype)
        w = w.flip(0, 4) if self.back else w
        m, b, g, r, c, d = w.shape
        if g < self.states:
            w = w.expand(m, b, g, self.states // g, c, d)
            return w.reshape(m * b * self.states, c, d)
        return w.reshape(m * b * g, r * c, d)

    def room(self, x: Tensor, span: Span, add: bool = False) -> Tensor:
        """A block to fill and then `write`: x's own memory where that lies as the block does."""
        w = self._window(x, span)
        m, b, _, r, c, d = w.shape
        alone = self.b * self.states * r == 1 and not (self.back or add) and x.dtype == self.dtype
        return w.view(m, c, d) if alone else x.new_empty(m * b * self.states, r * c, d, dtype=self.dtype)

    def write(self, x: Tensor, span: Span, block: Tensor, add: bool = False) -> None:
        """Put a block back where `read` would find it, or add it; repeated heads are summed."""
        w = self._window(x, span)
        m, b, g, _, c, d = w.shape
        if block.data_ptr() == w.data_ptr():
            return
        if g < self.states:
            block = block.reshape(m, b, g, self.states // g, c, d).sum(3, keepdim=True)
        block = block.reshape(w.shape)
        block = block.flip(0, 4) if self.back else block
        w.add_(block) if add else w.copy_(block)
