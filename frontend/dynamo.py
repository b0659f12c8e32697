"""A graph that Dynamo found, to ours: functional, before autograd, in Dynamo's own symbolic sizes.

The graph is lowered with the fake tensors Dynamo made it with, so that whatever the lowering decides
about a size is a guard of Dynamo's, and another size compiles anew instead of being answered wrongly.
Gradients are autograd's, through the ops that run; so what stops them here must stop them there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensor
from torch.export.exported_program import (
    _override_composite_implicit_decomp,
    _split_decomp_table_to_cia_and_python_decomp,
)

from ..ir import CaptureError, Graph, TensorType, Value, building, symbol
from ..ir.core import OPS
from ..ir.dims import Poly, symbols
from ..ir.types import DTYPES
from .export import export_lock, first_line, quiet
from .fx import import_nodes, tensor_type
from .gradients import check_writes, refuse_foreign, settle
from .results import Plan, Result, Results, hint
from .signature import overlap
from .source import plain_path
from .state import Read, unwritten
from .symbols import Names
from .versions import Executable


@dataclass(frozen=True)
class Traced:
    """A graph of Dynamo's, captured.

    graph: the meaning. inputs: for each graph input the position of its argument, or the symbol whose
    size an empty tensor brings in. params: for each param name the position of its argument, or a
    constant tensor. sizes: symbol name -> position of the integer that has its value. results: what
    each output is made of. asserts: graph outputs, by index, that must be true, and what to raise where
    one is not. device: of all tensors. autocast: whether the graph holds the casts of an autocast region
    around it. hints: the sizes of the example. fakes: the fake tensors and symbolic integers that stand
    for Dynamo's arguments. modules: bodies of higher-order ops.
    """

    graph: Graph
    inputs: tuple[int | str, ...]
    params: Mapping[str, int | torch.Tensor]
    sizes: Mapping[str, int]
    results: tuple[Result, ...]
    asserts: tuple[tuple[int, str], ...]
    device: torch.device
    autocast: bool
    hints: Mapping[str, int]
    fakes: tuple[Any, ...] = field(default=(), repr=False)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)

    def arguments(self, args: tuple[Any, ...]) -> Read:
        """The graph's inputs, and its tensors by param name, out of Dynamo's arguments."""
        inputs = [
            args[place] if isinstance(place, int)
            else torch.empty(args[self.sizes[place]], 0, device=self.device)
            for place in self.inputs
        ]  # fmt: skip
        places = self.params.items()
        return inputs, {name: args[p] if isinstance(p, int) else p for name, p in places}

    def stand_ins(self) -> Read:
        """As `arguments`, of the fake tensors Dynamo made the graph with."""
        mode = next(x.fake_mode for x in self.fakes if isinstance(x, FakeTensor))
        with mode:
            inputs, tensors = self.arguments(self.fakes)
        known = (FakeTensor, nn.Parameter)
        return inputs, {k: x if isinstance(x, known) else mode.from_tensor(x) for k, x in tensors.items()}

    def runner(
        self, run: Executable, original: Callable[..., Any], warn: Callable[[str], None]
    ) -> Callable[..., list[Any]]:
        """The function Dynamo calls, over the live tensors it passes.

        original: the graph as it was, which runs (and `warn` says why) where a tensor that is written
        shares memory with another: Dynamo has no guard for that.
        """
        names = [value.op.attrs["name"] for value in self.graph.inputs]
        written = self.graph.updates.keys()

        def call(*args: Any) -> list[Any]:
            inputs, weights = self.arguments(args)
            tensors = {**dict(zip(names, inputs)), **weights}
            if written and _share_memory(tensors, written):
                warn("tensors that are written share memory with others in this call")
                return list(original(*args))
            if written:
                inputs, weights = unwritten(names, inputs, weights, written)
            env = {name: args[place] for name, place in self.sizes.items()}
            if self.autocast:  # its casts are in the graph already
                with torch._C._DisableAutocast():
                    outputs, updates = run(inputs, weights)
            else:
                outputs, updates = run(inputs, weights)
            for index, message in self.asserts:
                if not bool(outputs[index]):
                    raise RuntimeError(message)
            for name, new in updates.items():
                with torch.set_grad_enabled(torch.is_grad_enabled() and new.requires_grad):
                    tensors[name].copy_(new)
            made = Results(args, outputs, env)
            return [made(result) for result in self.results]

        return call


def trace(gm: fx.GraphModule, title: str = "graph") -> Traced:
    """`gm`, as a backend of torch.compile receives it, as a Graph. `gm` is not changed.

    Raises CaptureError for what no graph of ours can hold without changing results or gradients.
    """
    with export_lock(), quiet():
        try:
            return _Tracer(gm, title).run()
        except CaptureError:
            raise
        except Exception as error:
            kind = type(error).__name__
            raise CaptureError(f"torch could not lower this graph: {kind}: {first_line(error)}") from error


class _Tracer:
    def __init__(self, gm: fx.GraphModule, title: str):
        self.gm, self.title = gm, title
        self.nodes = [node for node in gm.graph.nodes if node.op == "placeholder"]
        self.fakes = [node.meta.get("example_value") for node in self.nodes]
        self.names = Names()

    def run(self) -> Traced:
        for node, fake in zip(self.nodes, self.fakes):
            if type(fake) is not FakeTensor and not isinstance(fake, (torch.SymInt, int, nn.Parameter)):
                name, kind = argument_path(node)[0], type(fake).__name__
                raise CaptureError(f"{name} is a {kind}, and a graph takes plain tensors")
        refuse_foreign(self.gm.graph)
        check_writes(self.gm.graph)
        device = self._device()
        (returned,) = next(n for n in self.gm.graph.nodes if n.op == "output").args
        plan = Plan(self.gm.graph, self.nodes, list(returned))
        module, lowered, signature = self._lowered(list(plan.wanted))
        own = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        places = {path: name for name, path in own.items()}
        writes = {
            **signature.parameters_to_mutate, **signature.buffers_to_mutate, **signature.user_inputs_to_mutate
        }  # fmt: skip
        changed = {output: places.get(target, target) for output, target in writes.items()}
        found, inputs, params = self._placeholders(lowered, _lift(lowered, module), {*changed.values()})
        imported = import_nodes(lowered, found, self.names)
        if self.names.unbacked:
            raise CaptureError("sizes depend on the values of tensors")
        (values,) = next(n for n in lowered.graph.nodes if n.op == "output").args
        by_name = {node.name: imported.values[node.name] for node in values}
        updates = {
            imported.values[target].op.attrs["name"]: by_name[output] for output, target in changed.items()
        }
        outputs = [by_name[node.name] for node in values[len(changed) :]]
        asserts = [(len(outputs) + i, message) for i, (_, message) in enumerate(imported.asserts)]
        outputs += [value for value, _ in imported.asserts]
        results = plan.results(self.names)
        graph = Graph(self.title, [value for value, _ in inputs], outputs, updates, ())
        used = {*graph.params, *updates}
        sizes = self._sizes()
        unknown = {n for r in results for n in r.symbols} - sizes.keys()
        if unknown:
            raise CaptureError(f"nothing says what size {min(unknown)} is")
        return Traced(
            graph, tuple(place for _, place in inputs),
            {name: place for name, place in params.items() if name in used}, sizes, results,
            tuple(asserts), device, torch.is_autocast_enabled(device.type),
            {name: hint(self.fakes[place]) for name, place in sizes.items()}, tuple(self.fakes),
            imported.modules,
        )  # fmt: skip

    def _device(self) -> torch.device:
        """The one device of everything that has axes. Raises CaptureError where there are several."""
        fakes = ((node, node.meta.get("example_value")) for node in self.gm.graph.nodes)
        found = {
            fake.device: None for node, fake in fakes
            if isinstance(fake, torch.Tensor) and (fake.dim() or node.op != "placeholder")
        }  # fmt: skip
        if len(found) > 1:
            raise CaptureError(f"tensors are on {' and '.join(map(str, found))}; a graph runs on one device")
        device = next(iter(found), torch.device("cpu"))
        if device.type != "cpu" and not any(isinstance(f, torch.Tensor) and f.dim() for f in self.fakes):
            raise CaptureError(f"no argument is on {device}, where its tensors are made")
        return device

    def _lowered(self, wanted: list[fx.Node]) -> tuple[nn.Module, fx.GraphModule, Any]:
        """The graph with `wanted` as outputs, and at the level of `run_decompositions({})`."""
        graph, copies = fx.Graph(), dict[fx.Node, Any]()
        graph.graph_copy(self.gm.graph, copies)
        settle(graph, copies)
        graph.output(tuple(copies[node] for node in wanted))
        preserved, _ = _split_decomp_table_to_cia_and_python_decomp({})
        module = fx.GraphModule(self.gm, graph)
        with _override_composite_implicit_decomp(preserved):
            lowered, signature = aot_export_module(module, self.fakes, trace_joint=False, decompositions={})
        assert isinstance(lowered, fx.GraphModule)
        return module, lowered, signature

    def _placeholders(
        self, lowered: fx.GraphModule, attributes: Mapping[str, torch.Tensor], written: set[str]
    ) -> tuple[dict[str, Any], list[tuple[Value, int | str]], dict[str, int | torch.Tensor]]:
        """What each placeholder stands for; graph inputs with where they come from; params likewise.

        attributes: tensors that are no arguments, by the placeholders that come before those of them.
        written: the placeholders that are written to.
        """
        found: dict[str, Any] = {}
        inputs: list[tuple[Value, int | str]] = []
        params: dict[str, int | torch.Tensor] = {}
        taken: set[str] = set()
        nodes = [node for node in lowered.graph.nodes if node.op == "placeholder"]
        with building():
            for node in nodes[: len(attributes)]:
                tensor = attributes[node.name]
                name = _free(node.name, taken)
                params[name] = tensor
                found[node.name] = OPS["param"](name=name, type=tensor_type(tensor, self.names))
            for place, (node, fake) in enumerate(zip(nodes[len(attributes) :], self.fakes, strict=True)):
                if not isinstance(fake, torch.Tensor):
                    found[node.name] = self.names.dim(fake)
                    continue
                found[node.name] = None  # nothing reads it
                node.meta["val"] = fake  # the lowered one has forgotten whether it needs a gradient
                path, weight = argument_path(self.nodes[place])
                name, type_ = _free(path, taken), tensor_type(fake, self.names)
                if weight and not any(symbols(type_.shape)):
                    params[name] = place
                    found[node.name] = OPS["param"](name=name, type=type_)
                elif node.users or node.name in written or any(symbols(type_.shape)):
                    found[node.name] = OPS["input"](name=name, type=type_)
                    inputs.append((found[node.name], place))
            told = {dim for value, _ in inputs for dim in value.shape}
            for name in self._sizes():
                if symbol(name) not in told:  # an integer: an empty tensor brings it in
                    type_ = TensorType(DTYPES["f32"], (symbol(name), 0))
                    inputs.append((OPS["input"](name=_free(f"size_{name}", taken), type=type_), name))
        return found, inputs, params

    def _sizes(self) -> dict[str, int]:
        """Which integer argument is which symbol. Raises CaptureError for one that may be negative."""
        found: dict[str, int] = {}
        for place, fake in enumerate(self.fakes):
            if isinstance(fake, torch.SymInt) and isinstance(dim := self.names.dim(fake), Poly):
                if not bool(fake >= 0):  # where it is not, Dynamo compiles anew
                    name = argument_path(self.nodes[place])[0]
                    raise CaptureError(f"the integer {name} is {hint(fake)}, and no size is negative")
                for name in symbols(dim):
                    if dim == symbol(name):
                        found.setdefault(name, place)
        return found


def _share_memory(tensors: Mapping[str, torch.Tensor], written: Iterable[str]) -> bool:
    """Whether one that is written meets another."""
    places: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        places.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    return any(
        other != name and overlap(tensors[name], tensors[other])
        for name in written
        for other in places[tensors[name].untyped_storage().data_ptr()]
    )


def argument_path(node: fx.Node) -> tuple[str, bool]:
    """`layers.0.weight` or `x` for a placeholder of Dynamo's, and whether it is a module's own tensor."""
    text = str(getattr(getattr(node, "_dynamo_source", None), "name", "") or node.name)
    if re.search(r"\._(parameters|buffers)\[", text):
        return plain_path(re.sub(r"\._(modules|parameters|buffers)(?=\[)", "", text)), True
    return re.sub(r"\W+", "_", re.sub(r"^L\['(\w+)'\]", r"\1", text)).strip("_"), False


def _free(name: str, taken: set[str]) -> str:
    """`name`, or with a number behind it where it is taken."""
    free, count = name, 1
    while free in taken:
        free, count = f"{name}_{count}", count + 1
    taken.add(free)
    return free


def _lift(lowered: fx.GraphModule, module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that are no arguments, by the placeholders they have, which come first.

    Those of `module` have one; for constants that lowering met one is made.
    """
    nodes = list(lowered.graph.nodes)
    own = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    found = {node.name: tensor for node, (_, tensor) in zip(nodes, own)}
    first = nodes[len(own)] if len(nodes) > len(own) else None
    made: dict[str, fx.Node] = {}
    for node in nodes:
        tensor = getattr(lowered, str(node.target), None) if node.op == "get_attr" else None
        if not isinstance(tensor, torch.Tensor):
            continue
        if node.target not in made:
            with lowered.graph.inserting_before(first):
                made[node.target] = lowered.graph.placeholder(f"constant{len(made)}")
            made[node.target].meta["val"] = tensor
            found[made[node.target].name] = tensor
        node.replace_all_uses_with(made[node.target])
        lowered.graph.erase_node(node)
    return found
