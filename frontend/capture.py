"""capture: a model and example arguments in, a Graph with everything needed to run it out."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export import Dim as TorchDim
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymIntArgument,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from ..ir import CaptureError, Graph, Value, building
from ..ir.core import OPS
from ..ir.dims import symbols
from .decisions import Decided
from .export import export, export_lock, first_line, normalise_shapes, quiet
from .fx import Imported, import_nodes, tensor_type
from .literals import literal
from .refusals import check_call, check_model, warn_of_side_effects
from .regions import inline_regions
from .signature import Constant, Input, Signature, argument_paths, result_size
from .symbols import Check, Names, distinct, named_symbols

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_UNBOUNDED = 1 << 60


@dataclass(frozen=True)
class Captured:
    """A captured model.

    graph: the meaning. tensors: the model's own tensor for each param name of the graph. signature:
    how calls map to it. modules: bodies of higher-order ops, by the name that ops use.
    model_was_training: the mode it was captured in. aliases: for each name of a weight the name its
    tensor goes by in the graph (tied weights share one). literals: names of buffers whose values are
    in the graph as ops, see `literals.py`.
    """

    graph: Graph
    tensors: dict[str, torch.Tensor]
    signature: Signature
    modules: dict[str, nn.Module] = field(default_factory=dict)
    model_was_training: bool = False
    aliases: dict[str, str] = field(default_factory=dict)
    literals: frozenset[str] = frozenset()


def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Captured:
    """The graph of `model` on example arguments. The model is not changed. Thread-safe.

    model: an nn.Module (an fx.GraphModule is one), or an ExportedProgram, which brings its own
    arguments. dynamic_shapes: as torch.export takes it; True leaves every axis of every tensor open;
    a string stands for a named `Dim`. Raises CaptureError: what cannot be captured, where, what to do.
    """
    model = check_model(model)
    args, kwargs = check_call(model, args, kwargs)
    model = model if isinstance(model, ExportedProgram) else _twin(model)
    decided = Decided()
    with export_lock(), torch.inference_mode(False):
        if isinstance(model, ExportedProgram):
            program, shapes = model, None
        else:
            warn_of_side_effects(model)
            shapes = normalise_shapes(model, args, kwargs, dynamic_shapes)
            exported = export(model, args, kwargs, shapes)
            program, decided = exported.program, exported.decided
        try:
            with quiet():
                lowered = inline_regions(program).run_decompositions({})
        except Exception as error:
            raise CaptureError(f"torch could not lower the exported program: {first_line(error)}") from error
        return _Converter(model, program, lowered, shapes, decided).run()


def _twin(model: nn.Module) -> nn.Module:
    """The modules of `model`, copied around the same tensors.

    torch.export puts fake tensors into a model while it traces, and other threads may be running it.
    A model that cannot be copied is traced itself.
    """
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    try:
        return copy.deepcopy(model, tensors)  # deepcopy takes what is in its memo for copied
    except Exception:
        return model


class _Converter:
    def __init__(
        self,
        model: nn.Module | ExportedProgram,
        program: ExportedProgram,
        lowered: ExportedProgram,
        shapes: Any,
        decided: Decided,
    ):
        self.model, self.program, self.lowered = model, program, lowered
        self.decided, self.shapes = decided, shapes
        self.nodes = {node.name: node for node in lowered.graph.nodes}
        self.specs = lowered.graph_signature
        self.user = [s for s in self.specs.input_specs if s.kind is InputKind.USER_INPUT]
        self.call = _forward_signature(model)
        args, kwargs = lowered.call_spec.in_spec.unflatten(range(len(self.user)))
        self.arguments = self.call.bind(*args, **kwargs).arguments  # leaves: positions among inputs
        self.names = Names(named_symbols(self._placed(shapes)))
        state = _state(model)
        first = {id(t): name for name, t in reversed(state.items())}
        self.aliases = {name: first[id(t)] for name, t in state.items()}
        self.state = state
        self.literals: set[str] = set()

    def run(self) -> Captured:
        placeholders, inputs, values, tensors = self._placeholders()
        imported = import_nodes(self.lowered.graph_module, placeholders, self.names)
        outputs, results, updates, written = self._outputs(imported)
        checks = self._checks(imported)
        asserts = []
        for value, message in imported.asserts:
            asserts.append((len(outputs), message))
            outputs.append(value)
        wanted = {n for r in results for n in symbols(getattr(r, "dim", 0))}
        wanted |= {name for check in checks for name in check.symbols}
        bound = {}
        for name in sorted(wanted & imported.bound.keys()):
            value, axis = imported.bound[name]
            bound[name] = (len(outputs), axis)
            outputs.append(value)
        facts = tuple(self._facts())
        title = re.sub(r"\W", "_", getattr(self.model, "__name__", type(self.model).__name__))
        graph = Graph(title, values, outputs, updates, facts)
        order, tree = pytree.tree_flatten(dict(self.arguments))
        leaves = tuple(self._leaf(i, inputs) for i in order)
        paths = argument_paths(self.arguments)
        signature = Signature(
            call=self.call, arguments=tuple(self.arguments), tree=tree, leaves=leaves,
            paths=tuple(paths), inputs=tuple(self._input(i, x, paths[order.index(i)], written)
                                             for i, x in inputs.items()),
            out_tree=self.lowered.call_spec.out_spec, results=tuple(results), checks=checks,
            asserts=tuple(asserts), bound=bound, facts=facts, opened=bool(self.shapes),
            layout=self.decided.layout,
        )  # fmt: skip
        used = graph.params
        return Captured(
            graph, {k: t for k, t in tensors.items() if k in used or k in updates}, signature,
            imported.modules, bool(getattr(self.model, "training", False)), self.aliases,
            frozenset(self.literals),
        )  # fmt: skip

    # ---- inputs ----------------------------------------------------------------------------------

    def _placeholders(
        self,
    ) -> tuple[dict[str, Any], dict[int, Value], list[Value], dict[str, torch.Tensor]]:
        """What each placeholder node stands for, the tensor inputs by position, weights by name."""
        found: dict[str, Any] = {}
        inputs: dict[int, Value] = {}
        tensors: dict[str, torch.Tensor] = {}
        taken = {self.aliases.get(str(s.target), str(s.target)) for s in self.specs.input_specs}
        with building():
            for spec in self.specs.input_specs:
                node = self.nodes.get(spec.arg.name)
                if spec.kind in _WEIGHTS:
                    name, tensor = self._weight(str(spec.target))
                    type_ = tensor_type(tensor, self.names)
                    value = literal(tensor, type_) if self._constant(spec, name) else None
                    if value is None:
                        tensors[name] = tensor
                        value = OPS["param"](name=name, type=type_)
                    elif spec.kind is InputKind.BUFFER:
                        self.literals.add(name)
                    found[spec.arg.name] = value
                elif spec.kind is not InputKind.USER_INPUT:
                    kind = spec.kind.name.lower().replace("_", " ")
                    raise CaptureError(f"the model uses a {kind} ({spec.target}), which no graph can hold")
                elif isinstance(spec.arg, ConstantArgument):
                    found[spec.arg.name] = spec.arg.value
                elif isinstance(spec.arg, TensorArgument) and node is not None:
                    name = node.name if node.name not in taken else f"{node.name}_input"
                    type_ = tensor_type(node.meta["val"], self.names)
                    value = OPS["input"](name=name, type=type_)
                    found[node.name] = inputs[self.user.index(spec)] = value
                else:
                    raise CaptureError(
                        f"input {spec.arg.name!r} is a {type(spec.arg).__name__.removesuffix('Argument')}; "
                        "subquad takes tensors and fixed plain values: pass a changing number as a 0-d "
                        "tensor, and leave it out of dynamic_shapes"
                    )
        return found, inputs, list(inputs.values()), tensors

    def _constant(self, spec: Any, name: str) -> bool:
        """Whether an input of the program is no state of the model: nothing saves, loads or writes it."""
        written = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
        targets = {str(out.target) for out in self.specs.output_specs if out.kind in written}
        if spec.kind is InputKind.CONSTANT_TENSOR:
            return str(spec.target) not in targets
        shared = [n for n, tensor in self.state.items() if self.aliases.get(n, n) == name]
        alone = shared == [str(spec.target)] and str(spec.target) not in targets
        return spec.kind is InputKind.BUFFER and spec.persistent is False and alone

    def _weight(self, target: str) -> tuple[str, torch.Tensor]:
        if target in self.state:
            return self.aliases[target], self.state[target]
        constant = self.lowered.constants.get(target)
        if not isinstance(constant, torch.Tensor):
            raise CaptureError(f"the model uses {target!r}, a {type(constant).__name__}, as a constant")
        return target, constant

    def _input(self, position: int, value: Value, path: str, written: set[str]) -> Input:
        name = value.op.attrs["name"]
        fake = self.nodes[self.user[position].arg.name].meta["val"]
        return Input(name, path, value.type, fake.device, name in written, fake.is_contiguous())

    def _leaf(self, position: int, inputs: dict[int, Value]) -> Any:
        if position in inputs:
            return list(inputs).index(position)
        return Constant(self.user[position].arg.value)

    def _placed(self, shapes: Any) -> Iterator[tuple[Any, str]]:
        """`(size, name)` for each axis that the user gave a named Dim."""
        if isinstance(shapes, (tuple, list)):
            shapes = dict(zip(self.arguments, shapes))
        if not isinstance(shapes, Mapping):
            return
        for name, spec in shapes.items():
            if name in self.arguments:
                yield from self._named(spec, self.arguments[name])

    def _named(self, spec: Any, place: Any) -> Iterator[tuple[Any, str]]:
        if isinstance(place, int):
            node = self.nodes.get(self.user[place].arg.name)
            fake = None if node is None else node.meta.get("val")
            if not isinstance(fake, torch.Tensor) or not isinstance(spec, (Mapping, tuple, list)):
                return
            for axis, dim in spec.items() if isinstance(spec, Mapping) else enumerate(spec):
                if isinstance(dim, TorchDim):  # `2 * half` names the symbol of half
                    yield fake.shape[axis], getattr(dim, "root", dim).__name__
        elif isinstance(spec, Mapping) and isinstance(place, Mapping):
            for key in spec.keys() & place.keys():
                yield from self._named(spec[key], place[key])
        elif isinstance(spec, (tuple, list)) and isinstance(place, (tuple, list)):
            for part, inner in zip(spec, place):
                yield from self._named(part, inner)

    # ---- outputs ---------------------------------------------------------------------------------

    def _outputs(self, imported: Imported) -> tuple[list[Value], list[Any], dict[str, Value], set[str]]:
        """Graph outputs, the result entries, the updates, and names of inputs that are written to."""
        outputs: list[Value] = []
        results: list[Any] = []
        updates: dict[str, Value] = {}
        written: set[str] = set()
        for spec in self.specs.output_specs:
            constant = isinstance(spec.arg, ConstantArgument)
            found: Any = spec.arg.value if constant else imported.values[spec.arg.name]
            if spec.kind is OutputKind.USER_INPUT_MUTATION:
                name = imported.values[str(spec.target)].op.attrs["name"]
                written.add(name)
                updates[name] = found
            elif spec.kind is not OutputKind.USER_OUTPUT:
                updates[self._weight(str(spec.target))[0]] = found
            elif isinstance(spec.arg, TensorArgument):
                results.append(len(outputs))
                outputs.append(found)
            elif isinstance(spec.arg, SymIntArgument):
                results.append(result_size(found))
            elif isinstance(spec.arg, ConstantArgument):
                results.append(Constant(found))
            else:
                raise CaptureError(
                    f"the model returns {getattr(found, 'expr', found)}, a number computed from sizes; "
                    "return a tensor, or compute it outside"
                )
        return outputs, results, updates, written

    # ---- sizes -----------------------------------------------------------------------------------

    def _checks(self, imported: Imported) -> tuple[Check, ...]:
        """What every call must satisfy: asserts, decisions of the model, and torch's guards.

        torch's own `!=` are left out: they choose a general way over a short cut, which stays right
        where the sizes are equal. The model's own are among the decisions.
        """
        check, found = self.names.check, list(imported.checks)
        environments = self._environments()
        for expr, truth, where in self.decided.sizes:
            for env in environments[:1]:
                found.append(check(env.replace(expr), truth, where))
        for env in environments:
            for guard in env.guards:
                if type(guard.expr).__name__ != "Unequality":
                    found.append(check(env.replace(guard.expr)))
        return distinct(found)

    def _environments(self) -> list[Any]:
        """torch's records of sizes, from the tracing of the model and of its decomposition."""
        found: dict[int, Any] = {}
        for program in (self.program, self.lowered):
            for node in program.graph.nodes:
                mode = getattr(node.meta.get("val"), "fake_mode", None)
                if mode is not None and mode.shape_env is not None:
                    found[id(mode.shape_env)] = mode.shape_env
                    break
        return list(found.values())

    def _facts(self) -> Iterator[tuple[str, int, int | None]]:
        """Ranges of symbols. A lower bound of 2 is torch's own habit, not a fact: it becomes 0."""
        for symbol, limits in self.lowered.range_constraints.items():
            name = self.names.chosen.get(str(symbol))
            if name is None:
                continue
            low = int(limits.lower) if str(limits.lower).lstrip("-").isdigit() else 0
            high = int(limits.upper) if str(limits.upper).isdigit() else _UNBOUNDED
            low = low if low > 2 else 0
            if low or high < _UNBOUNDED:
                yield name, low, high if high < _UNBOUNDED else None


def _state(model: nn.Module | ExportedProgram) -> dict[str, torch.Tensor]:
    """Every weight and buffer by every name it has."""
    if isinstance(model, ExportedProgram):
        constants = {k: v for k, v in model.constants.items() if isinstance(v, torch.Tensor)}
        return {**model.state_dict, **constants}
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _forward_signature(model: nn.Module | ExportedProgram) -> inspect.Signature:
    if not isinstance(model, ExportedProgram):
        return inspect.signature(model.forward)
    args, kwargs = model.call_spec.in_spec.unflatten(range(model.call_spec.in_spec.num_leaves))
    own = model.module_call_graph[0].signature
    names = list(own.forward_arg_names or ()) if own is not None else []
    names += [f"arg{i}" for i in range(len(names), len(args))]
    kind = inspect.Parameter
    positional = [kind(name, kind.POSITIONAL_OR_KEYWORD) for name in names[: len(args)]]
    return inspect.Signature(positional + [kind(name, kind.KEYWORD_ONLY) for name in kwargs])
