"""How many tokens a call has: which size of a graph that is, and a call's inputs at other lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_map

from .calibration import Batch
from .frontend import Captured
from .ir import Dim, Graph, PlanError
from .ir.dims import evaluate, symbols
from .passes import find_sites


@dataclass(frozen=True)
class Lengths:
    """What "tokens" are in a graph: the size that most of its attentions are square in.

    dim: that size. sizes: of the open dims in the example.
    """

    dim: Dim
    example: Mapping[str, int]

    @property
    def open(self) -> frozenset[str]:
        """The symbols of `dim`; none where capture fixed the number of tokens."""
        return frozenset(symbols(self.dim))

    @staticmethod
    def of(graph: Graph, example: Mapping[str, int]) -> Lengths:
        """Of the queries of a graph's attentions; 1 where there is none."""
        sites = [site.q_len for site in find_sites(graph) if site.op.name == "attention"]
        dims: Counter[Dim] = Counter(dim for dim in sites if dim is not None)
        return Lengths(max(dims, key=lambda d: (not isinstance(d, int), dims[d])) if dims else 1, example)

    def sizes(self, tokens: int) -> dict[str, int]:
        """Sizes of the open dims for so many tokens, or the next number that there can be."""
        if not self.open:
            return dict(self.example)

        def at(x: int) -> dict[str, int]:
            return {**self.example, **dict.fromkeys(self.open, x)}

        low, high = 0, 1
        while evaluate(self.dim, at(high)) < tokens:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if evaluate(self.dim, at(middle)) < tokens else (low, middle)
        return at(high)

    def checked(self, lengths: Sequence[int] | None) -> tuple[int, ...]:
        """The lengths that times are wanted at; that of the example if none are given.

        Raises PlanError for lengths of a model captured with another, fixed one.
        """
        here = evaluate(self.dim, self.example)
        if lengths is None:
            return (here,)
        wrong = [n for n in lengths if isinstance(n, bool) or not isinstance(n, int) or n < 1]
        if wrong or not lengths:
            raise PlanError(f"lengths={lengths!r}: numbers of tokens are wanted, such as [512, 4096]")
        if not self.open and set(lengths) != {here}:
            raise PlanError(
                f"lengths={list(lengths)}, but the model was captured with {here} tokens fixed; pass "
                "dynamic_shapes, as torch.export takes it, to leave their number open"
            )
        return tuple(sorted(set(lengths)))


def resized(batch: Batch, captured: Captured, sizes: Mapping[str, int]) -> Batch:
    """The batch with its tensors repeated or cut to other sizes of the open dims."""
    made = {}
    for spec, x in zip(captured.signature.inputs, batch.inputs, strict=True):
        y = x
        for axis, dim in enumerate(spec.type.shape):
            n = evaluate(dim, sizes)
            if x.shape[axis] not in (0, n):
                y = y.index_select(axis, torch.arange(n, device=x.device) % x.shape[axis])
        made[id(x)] = y
    args, kwargs = tree_map(lambda x: made.get(id(x), x), (batch.args, dict(batch.kwargs)))
    return Batch(args, kwargs, tuple(made[id(x)] for x in batch.inputs))
