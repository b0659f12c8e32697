"""The weights of an optimised module: the model's own tree of names, with tensors of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

CONSTANTS = "_constants"

Read = tuple[list[torch.Tensor], dict[str, torch.Tensor]]
"""What a graph reads in one call: its inputs in order, and tensors by param name."""


class Scope(nn.Module):
    """A place in the tree: holds weights under the name that a submodule of the model had."""

    def _get_name(self) -> str:
        return "weights"


def unwritten(
    names: Iterable[str],
    inputs: list[torch.Tensor],
    tensors: dict[str, torch.Tensor],
    written: Collection[str],
) -> Read:
    """What a graph whose inputs are called `names` reads, so that `written` may be written afterwards.

    Copies of those tensors where a backward pass may need them as they were; else just these.
    """
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *tensors.values()))):
        return inputs, tensors
    return (
        [x.clone() if name in written else x for name, x in zip(names, inputs)],
        {name: x.clone() if name in written else x for name, x in tensors.items()},
    )


def copy_state(model: nn.Module | ExportedProgram, target: nn.Module, share: bool = False) -> None:
    """Give `target` the parameters, buffers and submodule names of `model`; tied ones stay tied.

    Tensors are cloned unless `share`. The same state_dict keys, in the same order.
    """
    tensors: dict[int, Any] = {}
    if isinstance(model, ExportedProgram):
        _from_program(model, target, tensors, share)
        return
    scopes: dict[int, nn.Module] = {id(model): target}
    _copy_into(model, target, scopes, tensors, share)


def _copy_into(
    model: nn.Module,
    target: nn.Module,
    scopes: dict[int, nn.Module],
    tensors: dict[int, Any],
    share: bool,
) -> None:
    for name, parameter in model._parameters.items():
        target._parameters[name] = _copied(parameter, tensors, share)
    for name, buffer in model._buffers.items():
        target._buffers[name] = _copied(buffer, tensors, share)
    target._non_persistent_buffers_set |= model._non_persistent_buffers_set
    target.training = model.training
    for name, child in model._modules.items():
        if child is None:
            target._modules[name] = None
            continue
        scope = scopes.get(id(child))
        if scope is None:
            scope = scopes[id(child)] = Scope()
            _copy_into(child, scope, scopes, tensors, share)
        target._modules[name] = scope


def _copied(tensor: torch.Tensor | None, tensors: dict[int, Any], share: bool) -> Any:
    if tensor is None or share:
        return tensor
    if id(tensor) not in tensors:
        data = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            data = nn.Parameter(data, requires_grad=tensor.requires_grad)
        tensors[id(tensor)] = data
    return tensors[id(tensor)]


def _from_program(program: ExportedProgram, target: nn.Module, tensors: dict[int, Any], share: bool) -> None:
    persistent = set(program.graph_signature.buffers) - set(program.graph_signature.non_persistent_buffers)
    constants = {k: v for k, v in program.constants.items() if k in program.graph_signature.buffers}
    for path, tensor in {**program.state_dict, **constants}.items():
        scope, name = _scope(target, path)
        copied = _copied(tensor, tensors, share)
        if isinstance(copied, nn.Parameter):
            scope._parameters[name] = copied
        else:
            scope._buffers[name] = copied
            if path not in persistent:
                scope._non_persistent_buffers_set.add(name)


def add_parameters(target: nn.Module, learned: Mapping[str, torch.Tensor]) -> None:
    """Register parameters, and other tensors as buffers, under their dotted names."""
    for path, tensor in learned.items():
        scope, name = _scope(target, path)
        if isinstance(tensor, nn.Parameter):
            scope._parameters[name] = tensor
        else:
            scope._buffers[name] = tensor


def _scope(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    *parents, name = path.split(".")
    for part in parents:
        child = root._modules.get(part)
        if child is None:
            child = root._modules[part] = Scope()
        root = child
    return root, name


class Places(dict[str, tuple[dict[str, Any], str]]):
    """For each param name the dict and key that hold its tensor.

    No plain dict, because torch.export copies those of a module it traces, fake tensors and all.
    """


def places(module: nn.Module, names: Iterable[str], constants: Mapping[str, torch.Tensor]) -> Places:
    """For each param name of a graph the dict and key in `module` that hold its tensor.

    A name that is no weight of the module is a constant: its tensor from `constants` becomes a
    non-persistent buffer of the scope `_constants`, so that `.to()` moves it.
    """
    found = Places()
    for name in names:
        place = _find(module, name)
        if place is None:
            scope = module._modules.get(CONSTANTS)
            if scope is None:
                scope = module._modules[CONSTANTS] = Scope()
            key = name.replace(".", "/")
            if key not in scope._buffers:
                scope._buffers[key] = constants[name].detach().clone()
                scope._non_persistent_buffers_set.add(key)
            place = scope._buffers, key
        found[name] = place
    return found


def holds(module: nn.Module, path: str) -> bool:
    """Whether a module has a parameter or buffer of this dotted name."""
    return _find(module, path) is not None


def _find(module: nn.Module, path: str) -> tuple[dict[str, Any], str] | None:
    *parents, name = path.split(".")
    scope: nn.Module | None = module
    for part in parents:
        scope = scope._modules.get(part) if scope is not None else None
    if scope is None:
        return None
    for table in (scope._parameters, scope._buffers):
        if table.get(name) is not None:
            return table, name
    return None
