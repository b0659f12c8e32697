"""What recipes give at sites of a model beside what attention gives there, on the same operands.

One graph computes both, so nothing is stored: a batch goes through the original model, and at each
chosen site out come the exact result and the recipe's, from the model's own queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .backends import backend
from .frontend import Captured
from .ir import Graph, No, Value, building
from .learned import initial
from .passes import Recipe, canonicalize, find_sites
from .passes.linearize import places, substitute
from .passes.masks import classify_op


@dataclass(frozen=True)
class Tap:
    """What attention gives at a site and what a recipe gives, [b, h, n, e] each.

    rows: bool [b or 1, n], False for padded tokens, whose results nothing reads; None for none.
    """

    exact: Tensor
    made: Tensor
    rows: Tensor | None

    def squares(self) -> tuple[Tensor, Tensor]:
        """Of the difference and of the exact result, summed over all tokens but padded ones."""
        off, exact = (self.made - self.exact).square(), self.exact.square()
        if self.rows is not None:
            off, exact = (x * self.rows[:, None, :, None] for x in (off, exact))
        return off.sum(), exact.sum()


class Taps:
    """At sites of a captured model, attention's results and those of recipes.

    graph: the captured model, simplified. chosen: (index of a site in `find_sites(graph)`, recipe);
    a site may be named with several recipes. refused: why, by position in `chosen`, where a recipe
    does not fit its site; made: what stands there, where it does. grids: as of the pass `linearize`.
    Gradients flow to the weights that recipes add and to nothing else.
    """

    def __init__(
        self,
        captured: Captured,
        graph: Graph,
        chosen: Sequence[tuple[int, Recipe]],
        grids: Mapping[str, str] = {},
    ):
        sites = find_sites(graph)
        where = places(graph, sites, grids)
        self.refused: dict[int, str] = {}
        self.made: dict[int, Value] = {}
        self._at: list[int] = []
        outputs: list[Value] = []
        self._rows: list[bool] = []
        with building():
            for at, (index, recipe) in enumerate(chosen):
                op = sites[index].op
                if op not in where:
                    self.refused[at] = sites[index].reason
                    continue
                made = substitute(op, op.inputs, recipe, where[op])
                if isinstance(made, No):
                    self.refused[at] = made.reason
                    continue
                padding, square = classify_op(op).padding, op.types[0].shape[2] == op.args[1].shape[2]
                rows = [padding] if square and padding is not None else []
                self._at.append(at)
                self.made[at] = made
                self._rows.append(bool(rows))
                outputs += [op.results[0], made, *rows]
        tapped = Graph(graph.name, graph.inputs, outputs, facts=graph.facts)
        self.graph = canonicalize(tapped)
        self.own = {name: x.detach() for name, x in captured.tensors.items()}
        self.learned = initial(self.graph, self.own)
        self._run = backend("eager").compile(self.graph, captured.modules)

    def __call__(self, inputs: Sequence[Tensor], learned: Mapping[str, Tensor] = {}) -> dict[int, Tap]:
        """What came of each position in `chosen`, but of those refused.

        learned: weights by name that take the place of those in `self.learned`.
        """
        results = iter(self._run(inputs, self.own | self.learned | dict(learned))[0])
        found = {}
        for at, padded in zip(self._at, self._rows, strict=True):
            exact, made = next(results), next(results)
            found[at] = Tap(exact, made, next(results)[:, 0, 0] if padded else None)
        return found

    def names(self, at: int) -> tuple[str, ...]:
        """The weights that the recipe at this position of `chosen` adds."""
        before = self._at.index(at)
        made = self.graph.outputs[2 * before + 1 + sum(self._rows[:before])]
        return tuple(n for n in Graph("site", self.graph.inputs, (made,)).params if n in self.learned)
