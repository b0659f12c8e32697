"""One module, several graphs of one signature: exact attention for few tokens, linear for many.

    Guard("n", 1024)                                  # prints as n >= 1024
    ladder({"a": 512, "b": 2048, "c": None})          # [(0, {}), (512, {a}), (2048, {a, b})]

A call runs the last version whose guard holds on the sizes of its inputs, the first where none does.
Under torch.compile with open sizes the comparison is a guard of Dynamo's, which compiles the versions
that are met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..ir import BackendError, Dim, Graph, IRError, TensorType, Value, symbol
from ..ir.dims import at_least, evaluate, substitute, symbols
from ..ir.interpret import bind
from ..ir.text import parse_dim

Executable = Callable[
    [Sequence[torch.Tensor], Mapping[str, torch.Tensor]],
    tuple[list[torch.Tensor], dict[str, torch.Tensor]],
]
"""`(inputs, tensors by param name) -> (outputs, updates by buffer or input name)`."""


@dataclass(frozen=True)
class Guard:
    """`size >= least`. size: a polynomial of the graph's dim symbols in their text form, "n" or "h*w".

    Raises IRError for a text that is no dimension.
    """

    size: str
    least: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", str(parse_dim(self.size)))

    @staticmethod
    def parse(text: str) -> Guard:
        """The guard that prints as `text`. Raises IRError."""
        size, _, least = text.rpartition(">=")
        bound = parse_dim(least)
        if not isinstance(bound, int):
            raise IRError(f"a guard is a size and the least it must be, 'n >= 1024', not {text!r}")
        return Guard(size, bound)

    def __str__(self) -> str:
        return f"{self.size} >= {self.least}"

    @property
    def dim(self) -> Dim:
        """The size as a dimension."""
        return parse_dim(self.size)

    def known(self, facts: Sequence[tuple[str, int, int | None]] = ()) -> bool | None:
        """Whether it holds, where that follows from ranges of symbols (`Graph.facts`); else None."""
        dim = self.dim
        if at_least(substitute(dim, {name: symbol(name) + low for name, low, _ in facts}), self.least):
            return True
        tops = {name: high - symbol(name) for name, _, high in facts if high is not None}
        return False if at_least(self.least - 1 - substitute(dim, tops), 0) else None


Version = tuple[Guard | None, Graph]
"""A graph and the guard under which it runs; None: always."""


def reachable(graph: Graph, versions: Sequence[tuple[Guard, Graph]] = ()) -> tuple[Version, ...]:
    """Those that some call can run, of `graph` and of the versions that come before it, the last foremost.

    With fixed sizes one is left. The first of the result has no guard.
    """
    found: list[Version] = [(None, graph)]
    for guard, other in versions:
        holds = guard.known(graph.facts)
        if holds:
            found = [(None, other)]
        elif holds is None:
            found.append((guard, other))
    return tuple(found)


class Versions:
    """Graphs with their executables, as one executable that picks by the sizes of the inputs.

    versions: from the one that always holds to the one that is asked first. params: the weights that
    any of them reads.
    """

    def __init__(self, versions: Sequence[Version], executables: Sequence[Executable]):
        """Raises BackendError for graphs that do not stand for one another, IRError for a guard on a size
        that no input has."""
        (always, base), *others = self.versions = tuple(versions)
        otherwise, *runs = executables
        chosen = []
        for (guard, graph), run in zip(others, runs, strict=True):
            if guard is None or always is not None:
                raise BackendError("the first version, and no other, runs where no guard holds")
            if _face(graph) != _face(base):
                raise BackendError(f"two versions of {base.name!r} differ in inputs, outputs or updates")
            chosen.append((_size(guard, base.inputs), guard.least, run))
        self._otherwise, self._chosen = otherwise, tuple(reversed(chosen))
        self.params: dict[str, TensorType] = {}
        for _, graph in self.versions:
            for name, type in graph.params.items():
                if self.params.setdefault(name, type) != type:
                    was = self.params[name]
                    raise BackendError(f"weight {name!r} is {was} in one version and {type} in another")

    def __call__(
        self, inputs: Sequence[torch.Tensor], tensors: Mapping[str, torch.Tensor]
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Run the version for these sizes."""
        for size, least, run in self._chosen:
            if size(inputs) >= least:
                return run(inputs, tensors)
        return self._otherwise(inputs, tensors)


def _face(graph: Graph) -> tuple[object, ...]:
    """What a caller sees of a graph."""
    inputs = [(value.op.attrs["name"], value.type) for value in graph.inputs]
    updates = {name: value.type for name, value in graph.updates.items()}
    return inputs, [value.type for value in graph.outputs], updates


def _size(guard: Guard, inputs: Sequence[Value]) -> Callable[[Sequence[torch.Tensor]], int]:
    """Reads the size off the tensors of a call: an axis where it is one, else computed from the symbols."""
    dim = guard.dim
    for i, value in enumerate(inputs):
        for axis, found in enumerate(value.shape):
            if found == dim:
                return lambda tensors: tensors[i].shape[axis]
    known = dict.fromkeys(symbols(d for value in inputs for d in value.shape))
    if missing := set(symbols(dim)) - known.keys():
        raise IRError(
            f"the guard {guard} asks for {', '.join(sorted(missing))}, which is no size of an input; there "
            f"are {', '.join(known) or 'none'}"
        )
    return lambda tensors: evaluate(dim, bind({v: x.shape for v, x in zip(inputs, tensors, strict=True)}))


def ladder(thresholds: Mapping[str, int | None]) -> list[tuple[int, frozenset[str]]]:
    """The versions that thresholds ask for, one for each set of sites: `(least size, sites replaced)`.

    thresholds: for each site the size from which it is replaced; None: never, 0 or 1: always. Sizes
    ascend from 0, whose version is the one without a guard.
    """
    least = {path: at if at > 1 else 0 for path, at in thresholds.items() if at is not None}
    return [
        (step, frozenset(path for path, at in least.items() if at <= step))
        for step in sorted({0, *least.values()})
    ]
