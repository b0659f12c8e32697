"""What the command line names: models by `pkg.mod:make_model`, inputs by `f32[2,128]`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from .ir import DTYPES, SubquadError

_TYPES = {
    name: getattr(torch, DTYPES[name].torch)
    for name in ("f16", "bf16", "f32", "f64", "i8", "u8", "i16", "i32", "i64", "bool")
}

_FORM = re.compile(r"(?P<dtype>[a-z0-9]+)\[(?P<shape>[0-9, ]*)\](?:<(?P<high>[0-9]+))?")


def load(target: str, types: Sequence[str] | None = None) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """(model, args, kwargs) of `pkg.mod:make_model`; `types` replace its args.

    A target that is a module instance is taken as it is. Raises SubquadError, whatever goes wrong.
    """
    made = _call(target)
    model = made
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(made, tuple):
        if not 2 <= len(made) <= 3:
            raise SubquadError(
                f"{target} returned {len(made)} things: expected model, (model, args) or "
                "(model, args, kwargs)"
            )
        model = made[0]
        args = tuple(made[1]) if isinstance(made[1], (tuple, list)) else (made[1],)
        kwargs = dict(made[2]) if len(made) == 3 else {}
    if not isinstance(model, nn.Module):
        raise SubquadError(f"{target} returned a {type(model).__name__}, not a torch.nn.Module")
    if types:
        args, kwargs = tuple(example(text) for text in types), {}
    if not args and not kwargs:
        raise SubquadError(
            f"{target} gave a model and no inputs: return (model, args) from it, or describe\n"
            "    them, as in --args 'f32[2,128,64]' 'bool[2,128]'"
        )
    return model, args, kwargs


def _call(target: str) -> Any:
    module_name, colon, name = target.partition(":")
    if not colon or not module_name or not name:
        raise SubquadError(f"{target!r} does not name a model: expected pkg.mod:make_model")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise SubquadError(f"no module {error.name!r} here ({here}) or installed") from error
        raise SubquadError(f"{module_name} imports {error.name!r}, which is not installed") from error
    except Exception as error:
        raise SubquadError(f"{module_name} fails to import: {_brief(error)}") from error
    if not hasattr(module, name):
        known = [n for n in vars(module) if not n.startswith("_")]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SubquadError(f"{module_name} has no {name!r}{hint}")
    found = getattr(module, name)
    if isinstance(found, (nn.Module, tuple)):
        return found
    try:
        return found()
    except Exception as error:
        raise SubquadError(f"{target}() failed: {_brief(error)}") from error


def _brief(error: BaseException) -> str:
    """The error and the line of the user's file it came from."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = f" ({Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno})" if at else ""
    return f"{type(error).__name__}: {error}{where}"


def example(text: str) -> torch.Tensor:
    """A tensor for `f32[2,128]`, `i64[2,128]<1000` or `bool[2,128]`; the same every time."""
    form = _FORM.fullmatch(text.strip())
    if form is None or form["dtype"] not in _TYPES:
        raise SubquadError(
            f"{text!r} is no input type: expected f32[2,128,64], i64[2,128]<1000 or the like\n"
            f"    dtypes: {', '.join(_TYPES)}"
        )
    dtype = _TYPES[form["dtype"]]
    shape = [int(n) for n in form["shape"].replace(" ", "").split(",") if n]
    generator = torch.Generator().manual_seed(0)
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, int(form["high"] or 100), shape, generator=generator).to(dtype)


def axes_of(args: Any, kwargs: Any, axes: Mapping[int, str], model: nn.Module | None = None) -> Any:
    """`dynamic_shapes` that makes these axes of every input symbolic; `model` names keyword inputs."""
    dims = {axis: torch.export.Dim(name, min=1) for axis, name in axes.items()}
    leaves = tree_leaves((tuple(args), dict(kwargs)))
    ranks = [x.dim() for x in leaves if isinstance(x, torch.Tensor)]
    for axis, name in axes.items():
        if axis >= max(ranks, default=0):
            raise SubquadError(f"--dynamic {axis}={name}: no input has an axis {axis}; the ranks are {ranks}")

    def of(x: Any) -> dict[int, Any] | None:
        if not isinstance(x, torch.Tensor):
            return None
        return {axis: dim for axis, dim in dims.items() if axis < x.dim()}

    if not kwargs or model is None:
        return tree_map(of, tuple(args))
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return {name: tree_map(of, value) for name, value in bound.items()}


def resized(args: Any, axis: int, n: int) -> Any:
    """The same inputs with `n` items along `axis`, repeated or cut."""

    def of(x: torch.Tensor) -> torch.Tensor:
        if axis >= x.dim() or x.shape[axis] in (0, n):
            return x
        return x.index_select(axis, torch.arange(n, device=x.device) % x.shape[axis])

    return tree_map_only(torch.Tensor, of, args)
