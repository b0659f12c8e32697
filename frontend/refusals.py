"""What cannot be captured, said before torch.export is asked: models, devices, tensors, arguments."""

from __future__ import annotations

import ast
import inspect
import os
import textwrap
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..ir import CaptureError
from .aten import DTYPE_OF
from .containers import is_cache

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def check_model(model: Any) -> nn.Module | ExportedProgram:
    """`model` if it can be captured (a torch.compile wrapper is taken off). Raises CaptureError."""
    if isinstance(model, ExportedProgram):
        return model
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise CaptureError(f"{model.__name__} is a class; pass an instance: {model.__name__}(...)")
    if not isinstance(model, nn.Module):
        advice = "; put the function in a module's forward" if callable(model) else ""
        raise CaptureError(
            "the model must be a torch.nn.Module, an fx.GraphModule or an ExportedProgram, "
            f"not a {type(model).__name__}{advice}"
        )
    if hasattr(model, "_orig_mod"):
        model = model._orig_mod
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(f"{name} is a TorchScript module; pass the nn.Module it was made from")
    if name in _WRAPPERS:
        raise CaptureError(f"the model is wrapped in {name}; optimise model.module, then wrap the result")
    devices: dict[torch.device, str] = {}
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        refuse_tensor(tensor, f"weight {path!r}")
        devices.setdefault(tensor.device, path)
    if len(devices) > 1:
        listed = ", ".join(f"{path!r} on {device}" for device, path in list(devices.items())[:4])
        raise CaptureError(
            f"the model is spread over {len(devices)} devices ({listed}); move it to one: model.to(device)"
        )
    return model


def refuse_tensor(tensor: torch.Tensor, what: str) -> None:
    """Raise CaptureError for a tensor that is not dense, real memory of a plain torch dtype."""
    if nn.parameter.is_lazy(tensor):
        raise CaptureError(f"{what} has no shape yet (a lazy module); run the model once on an example first")
    if isinstance(tensor, FakeTensor):
        raise CaptureError(f"{what} is a FakeTensor, which has no data; pass real tensors")
    if tensor.is_meta:
        raise CaptureError(f"{what} is on the meta device, which has no data; load the weights first")
    if type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer):
        raise CaptureError(
            f"{what} is a {type(tensor).__name__}, a tensor subclass that subquad cannot see into; "
            "pass a plain torch.Tensor"
        )
    if tensor.layout is not torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise CaptureError(f"{what} has layout {layout}; subquad takes dense tensors: use .to_dense()")
    if tensor.is_quantized:
        raise CaptureError(f"{what} is a quantised tensor ({tensor.dtype}); use .dequantize()")
    if tensor.dtype not in DTYPE_OF:
        raise CaptureError(f"{what} has dtype {tensor.dtype}, which has no place in a graph; cast it first")


def check_call(
    model: nn.Module | ExportedProgram, args: Any, kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example arguments, if forward can take them. Raises CaptureError naming what is wrong."""
    if not isinstance(args, tuple):
        raise CaptureError(
            f"args must be a tuple of forward's positional arguments, not a {type(args).__name__}"
            + (": for one tensor write (x,)" if isinstance(args, torch.Tensor) else "")
        )
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise CaptureError("kwargs must map forward's argument names to values")
    kwargs = dict(kwargs)
    if isinstance(model, ExportedProgram):
        return args, kwargs
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(
            f"{type(model).__name__}.forward{signature} does not take these arguments: {error}"
        ) from None
    home = next((p.device for p in model.parameters()), None)
    leaves = pytree.tree_leaves_with_path(bound.arguments, is_leaf=lambda x: is_cache(type(x)))
    for path, leaf in leaves:
        what = f"input {leaf_name(path)!r}"
        if is_cache(type(leaf)):
            raise CaptureError(
                f"{what} is a {type(leaf).__name__}, which the model changes in place, and a graph takes "
                "only tensors; capture the forward over whole sequences, without past_key_values"
            )
        if isinstance(leaf, torch.Tensor):
            refuse_tensor(leaf, what)
            if home is not None and leaf.device != home and leaf.dim():
                raise CaptureError(f"{what} is on {leaf.device}, the model on {home}; move one of them")
    return args, kwargs


def leaf_name(path: tuple[Any, ...]) -> str:
    """`batch.mask` or `xs[0]`, from a pytree key path whose first key is the argument's name."""
    text = ""
    for key in path:
        name = getattr(key, "key", getattr(key, "name", None))
        if name is None or isinstance(name, int):
            text += f"[{getattr(key, 'idx', name)}]"
        else:
            text += f".{name}" if text else str(name)
    return text


def warn_of_side_effects(model: nn.Module) -> None:
    """Warn of prints and counters in forward: they happen at capture and never again."""
    for kind, module in {type(module): module for module in model.modules()}.items():
        if kind.__module__.partition(".")[0] == "torch" or not hasattr(kind, "forward"):
            continue
        try:
            forward = inspect.unwrap(kind.forward)
            lines, first = inspect.getsourcelines(forward)
            tree = ast.parse(textwrap.dedent("".join(lines)))
        except (OSError, TypeError, SyntaxError, ValueError):
            continue  # no source, or a piece of a line such as a lambda
        for node in ast.walk(tree):
            what = _effect(node, module)
            if what:
                place = f"{os.path.basename(forward.__code__.co_filename)}:{first + node.lineno - 1}"  # type: ignore[attr-defined]
                warnings.warn(
                    f"{place}: {what} in {kind.__name__}.forward happens once, at capture, and never "
                    "in the optimised module",
                    stacklevel=4,
                )


def _effect(node: ast.AST, module: nn.Module) -> str:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
        return "print"
    if isinstance(node, (ast.Global, ast.Nonlocal)):
        return f"a change of {', '.join(node.names)}"
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute):
        if isinstance(node.target.value, ast.Name) and node.target.value.id == "self":
            if isinstance(getattr(module, node.target.attr, None), (int, float)):
                return f"a change of self.{node.target.attr}"
    return ""
