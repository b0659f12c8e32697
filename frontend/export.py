"""torch.export, held in one place: one lock, non-strict then strict, and errors a person can use."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import itertools
import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from ..ir import CaptureError
from .containers import UNKNOWN, register_containers, registering_outputs
from .decisions import Decided, decisions
from .source import raised_at, whole_traces
from .untouched import unchanged


def export_lock() -> threading.RLock:
    """The lock that every capture of the process holds: torch.export is not thread-safe.

    It is Dynamo's own, which is held while a backend of torch.compile captures, so there is one order.
    """
    from torch._dynamo.convert_frame import compile_lock

    return compile_lock


_DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "Data-dependent", "data-dependent", "dynamic control flow")


@dataclass(frozen=True)
class Exported:
    """A program before decomposition, and what user code decided about sizes on the way."""

    program: ExportedProgram
    decided: Decided


def export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> Exported:
    """`model` as an ExportedProgram. Call with `export_lock` held.

    dynamic_shapes: as torch.export takes it, with a plain string for a named `Dim`; True for every
    axis of every tensor. Raises CaptureError with the user's line and torch's reason.
    """
    register_containers((args, kwargs))
    args, kwargs = told_apart(model, args, kwargs)
    shapes = normalise_shapes(model, args, kwargs, dynamic_shapes)

    def attempt(strict: bool) -> Exported:
        with quiet(), unchanged(model), whole_traces(), decisions(not strict) as decided:
            program = torch.export.export(
                model, args, kwargs, dynamic_shapes=shapes, strict=strict,
            )  # fmt: skip
        return Exported(program, decided)

    try:
        return attempt(strict=False)
    except Exception as error:
        first = error
    if UNKNOWN in str(first):
        with registering_outputs(model):
            try:
                return attempt(strict=False)
            except Exception as error:
                first = error
    try:
        return attempt(strict=True)
    except Exception:
        raise explained(model, first) from first


def told_apart(model: nn.Module, args: Any, kwargs: Any) -> Any:
    """The arguments with copies of tensors that come twice, are weights of the model, or views.

    torch.export takes one object for one input, and would ignore all but one of its places; of a view it
    guards the sizes of what it looks into, which no call gives.
    """
    seen = {id(t) for t in (*model.parameters(), *model.buffers())}

    def apart(x: torch.Tensor) -> torch.Tensor:
        if id(x) in seen or x._is_view():
            return copy.deepcopy(x.detach()).requires_grad_(x.requires_grad)  # strides as they are
        seen.add(id(x))
        return x

    return pytree.tree_map_only(torch.Tensor, apart, (args, kwargs))


def explained(model: Any, error: BaseException) -> CaptureError:
    """The CaptureError for a failed export."""
    name, where = type(model).__name__, raised_at(error)
    at = f"\n    at {where}" if where else ""
    reason = first_line(error)
    kind = type(error).__name__
    if any(mark in f"{kind}: {error}" for mark in _DATA_DEPENDENT):
        return CaptureError(
            f"{name} chooses what to do from the values of a tensor, which a graph cannot follow.{at}\n"
            "    Compute both sides and pick with torch.where(condition, a, b), branch with "
            f"torch.cond(condition, f, g, operands), or decide outside forward. torch: {reason}"
        )
    if "ConstraintViolation" in kind or "Constraints violated" in str(error):
        return CaptureError(
            f"{name} does not keep the sizes that dynamic_shapes leaves open: {_violations(error)}.{at}\n"
            f"    Use {_fixes(error)}torch.export.Dim.AUTO for those axes, or leave them out of "
            "dynamic_shapes"
        )
    if UNKNOWN in str(error) or "Unsupported input type" in str(error):
        return CaptureError(
            f"{name} takes or returns a container torch cannot open: {reason}.{at}\n"
            "    Register it with torch.utils._pytree.register_pytree_node, or use tuples, lists, dicts "
            "or dataclasses"
        )
    return CaptureError(f"torch.export could not capture {name}: {kind}: {reason}{at}")


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    line = next((line for line in lines if line), type(error).__name__)
    return line.split(". ")[0][:300].rstrip(".")


def _violations(error: BaseException) -> str:
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip().startswith("- ")]
    return "; ".join(lines[:3]).rstrip(".") or first_line(error)


def _fixes(error: BaseException) -> str:
    """What torch suggests, `n = Dim('n', max=512) or `, or nothing."""
    _, _, after = str(error).partition("Suggested fixes:\n")
    lines = (line.strip() for line in after.splitlines())
    fixes = list(itertools.takewhile(lambda line: " = " in line, lines))
    return f"{', '.join(fixes)}, or " if fixes else ""


def normalise_shapes(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> Any:
    """`dynamic_shapes` in torch's own form: True becomes AUTO everywhere, strings named Dims."""
    if dynamic_shapes is None or dynamic_shapes is False:
        return None
    if dynamic_shapes is True:
        register_containers((args, kwargs))
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        return {name: listed(pytree.tree_map(_every_axis, value)) for name, value in bound.items()}
    dims: dict[str, Any] = {}

    def named(item: Any) -> Any:
        if isinstance(item, str):
            return dims.setdefault(item, Dim(item))
        if isinstance(item, Mapping):
            return {key: named(value) for key, value in item.items()}
        if type(item) in (tuple, list):
            return type(item)(map(named, item))
        return item

    return named(dynamic_shapes)


def listed(shapes: Any) -> Any:
    """dynamic_shapes built like the arguments, with lists for dataclasses and the like, as torch wants."""
    if shapes is FIXED:
        return None
    if isinstance(shapes, dict):
        return {key: listed(value) for key, value in shapes.items()}
    if isinstance(shapes, (list, tuple)):
        parts = [listed(part) for part in shapes]
        return type(shapes)(*parts) if hasattr(shapes, "_fields") else type(shapes)(parts)
    node = pytree.SUPPORTED_NODES.get(type(shapes))
    return shapes if node is None else [listed(part) for part in node.flatten_fn(shapes)[0]]


def _every_axis(leaf: Any) -> Any:
    return dict.fromkeys(range(leaf.dim()), Dim.AUTO) if isinstance(leaf, torch.Tensor) else FIXED


FIXED = object()
"""The shape of what is no tensor; None would vanish from a dataclass."""


_CHATTER = (
    "torch.fx.experimental.symbolic_shapes",
    "torch._export.non_strict_utils",
    "torch.export._trace",
    "torch._guards",
)


class _Drop(logging.Filter):
    """Lets nothing through."""

    def filter(self, record: logging.LogRecord) -> bool:
        return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A block without torch's dumps of half-made graphs; the user's own prints and warnings stay."""
    drop = _Drop()
    for name in _CHATTER:
        logging.getLogger(name).addFilter(drop)
    text, succeeded = io.StringIO(), False
    try:
        with contextlib.redirect_stderr(text), warnings.catch_warnings():
            for module in (r"torch\.", "copyreg", "contextlib"):
                warnings.filterwarnings("ignore", module=module)
            yield
            succeeded = True
    finally:
        for name in _CHATTER:
            logging.getLogger(name).removeFilter(drop)
        if succeeded and text.getvalue():
            sys.stderr.write(text.getvalue())
