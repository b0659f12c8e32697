"""What a graph of Dynamo's returns: which outputs are fresh memory, and which look into another's.

Dynamo goes on with the tensors that a graph returns, and the next graph, or plain Python, may write to
them. So what was a view of an argument or of another output has to be one again, and strides are those
that eager torch gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..ir import CaptureError, Dim
from ..ir.dims import evaluate, symbols
from .gradients import fakes_of, memory_of
from .symbols import Names


@dataclass(frozen=True)
class Result:
    """One thing that a graph returns.

    kind: "argument" (`at` is its position), "output" (of the graph, `at` its index), "size" or
    "constant" (`value`). view: for a tensor that looks into the memory of `at`, its size, strides and
    the distance of its first element from that of `at`. stride: of an output, as eager torch has it.
    differentiable: whether gradients may flow out of it.
    """

    kind: str
    at: int = 0
    value: Any = None
    view: tuple[tuple[Dim, ...], tuple[Dim, ...], Dim] | None = None
    stride: tuple[Dim, ...] = ()
    differentiable: bool = True

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols whose sizes are needed to make it."""
        size, stride, offset = self.view or ((), (), 0)
        whole = (self.value,) if self.kind == "size" else ()
        return frozenset(symbols((*size, *stride, offset, *self.stride, *whole)))


class Plan:
    """How the outputs of a graph come about.

    placeholders: its arguments. returned: what it returns. wanted: the nodes that must be computed,
    among them the one whose memory several outputs look into.
    """

    def __init__(self, graph: fx.Graph, placeholders: Sequence[fx.Node], returned: Sequence[Any]):
        self.places = {node: i for i, node in enumerate(placeholders)}
        self.returned = returned
        self.wanted: dict[fx.Node, int] = {}
        self.owner: dict[int, fx.Node] = {}
        for node in graph.nodes:
            for fake in fakes_of(node):
                self.owner.setdefault(memory_of(fake), node)
        distinct = dict.fromkeys(x for x in returned if isinstance(x, fx.Node) and fakes_of(x))
        looked = [memory_of(_fake(node)) for node in distinct]
        self.shared = {memory for memory in looked if looked.count(memory) > 1}

        for node in distinct:
            of = self._of(node)
            if of not in self.places:
                self.wanted.setdefault(of, len(self.wanted))

    def _of(self, node: fx.Node) -> fx.Node:
        """The node in whose memory `node` lies, as far as anybody else can tell; else itself."""
        owner = self.owner[memory_of(_fake(node))]
        if owner in self.places:
            return owner
        if memory_of(_fake(node)) not in self.shared or owner is node:
            return node
        if not isinstance(owner.meta["example_value"], torch.Tensor):
            raise CaptureError("several results share memory that no tensor of the graph covers")
        inside, whole = _fake(node), _fake(owner)
        start = hint(inside.storage_offset()) - hint(whole.storage_offset())
        if start < 0 or start + _reach(inside) > _reach(whole):
            raise CaptureError("several results share memory that no tensor of the graph covers")
        return owner

    def results(self, names: Names) -> tuple[Result, ...]:
        """The results, sizes said with `names`. Raises CaptureError for what is no size or tensor."""
        return tuple(self._result(item, names) for item in self.returned)

    def _result(self, item: Any, names: Names) -> Result:
        if not isinstance(item, fx.Node):
            return Result("constant", value=item)
        fake = item.meta.get("example_value")
        if isinstance(fake, torch.SymInt):
            return Result("size", value=names.dim(fake))
        if not isinstance(fake, torch.Tensor):
            if isinstance(fake, (bool, int, float, type(None))):
                return Result("constant", value=fake)
            raise CaptureError(f"the graph returns a {type(fake).__name__}, which is no tensor")
        of = self._of(item)
        whole, size, stride = _fake(of), _dims(fake.shape, names), _dims(fake.stride(), names)
        kind, at = ("argument", self.places[of]) if of in self.places else ("output", self.wanted[of])
        grows = bool(fake.requires_grad)
        if fake is whole:
            return Result(kind, at, stride=stride if kind == "output" else (), differentiable=grows)
        first, start = names.dim(whole.storage_offset()), names.dim(fake.storage_offset())
        own = _dims(whole.stride(), names) if kind == "output" else ()
        return Result(kind, at, view=(size, stride, start - first), stride=own, differentiable=grows)


class Results:
    """Makes what a graph returns out of one call: its arguments, the graph's outputs, and sizes."""

    def __init__(self, args: Sequence[Any], outputs: Sequence[Any], env: Mapping[str, int]):
        self.args, self.env = args, env
        self.outputs: list[Any] = list(outputs)
        self.laid: set[int] = set()

    def __call__(self, result: Result) -> Any:
        """One result. Several that name one output see one memory."""
        if result.kind == "constant":
            return result.value
        if result.kind == "size":
            return evaluate(result.value, self.env)
        if result.kind == "argument":
            tensor = self.args[result.at]
        else:
            tensor = self._laid_out(result)
        if result.view is not None:
            size, stride, offset = result.view
            tensor = tensor.as_strided(
                self._ints(size), self._ints(stride),
                tensor.storage_offset() + evaluate(offset, self.env),
            )  # fmt: skip
        elif result.kind == "argument":
            return tensor
        return tensor if result.differentiable or not tensor.requires_grad else tensor.detach()

    def _laid_out(self, result: Result) -> torch.Tensor:
        """The output with eager's strides: copied, once, where a rewrite left it with others."""
        tensor = self.outputs[result.at]
        if result.at not in self.laid:
            self.laid.add(result.at)
            stride = self._ints(result.stride)
            if _differ(tensor, stride) and _dense(tensor.shape, stride):
                empty = tensor.new_empty_strided(tensor.shape, stride)
                tensor = self.outputs[result.at] = empty.copy_(tensor)
        return tensor

    def _ints(self, dims: Sequence[Dim]) -> list[int]:
        return [dim if isinstance(dim, int) else evaluate(dim, self.env) for dim in dims]


def _fake(node: fx.Node) -> torch.Tensor:
    fake: torch.Tensor = node.meta["example_value"]
    return fake


def _dims(sizes: Sequence[Any], names: Names) -> tuple[Dim, ...]:
    return tuple(names.dim(size) for size in sizes)


def hint(size: Any) -> int:
    """A size, or the one of the example that a symbolic size stands for."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def _reach(fake: torch.Tensor) -> int:
    """Elements from the first to the end of the last, at the example's sizes."""
    axes = [(hint(size), hint(stride)) for size, stride in zip(fake.shape, fake.stride())]
    return 0 if any(size == 0 for size, _ in axes) else 1 + sum((s - 1) * step for s, step in axes)


def _differ(tensor: torch.Tensor, stride: Sequence[int]) -> bool:
    """Whether strides differ on an axis where that says anything."""
    axes = zip(tensor.shape, tensor.stride(), stride)
    return tensor.numel() > 0 and any(size > 1 and a != b for size, a, b in axes)


def _dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether these strides put every element in a place of its own, without gaps."""
    reach = 1
    for step, size in sorted(zip(stride, shape)):
        if size > 1:
            if step != reach:
                return False
            reach *= size
    return True
