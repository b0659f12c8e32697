"""The caller's model stays as it was: what forward assigns while it is traced is put back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_TABLES = frozenset({"_parameters", "_buffers", "_modules"})  # torch.export restores these itself


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """A block after which every module has its old attributes, and lists and dicts their contents.

    Tracing leaves fake tensors in caches such as `self.last = x`. A public attribute that forward
    changes is named in a warning: the optimised module never changes it.
    """
    before = [(module, _attributes(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, old in before:
            changed = _restore(module, old)
            if changed:
                warnings.warn(
                    f"{type(module).__name__}.forward sets {', '.join(changed)}, which happens at capture "
                    "only: the optimised module leaves Python attributes alone (tensors that "
                    "change belong in register_buffer)",
                    stacklevel=6,
                )


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute, with a shallow copy of it where it is a list or dict."""
    return {
        name: (value, value.copy() if type(value) in (list, dict) else None)
        for name, value in module.__dict__.items()
        if name not in _TABLES
    }


def _restore(module: nn.Module, old: dict[str, tuple[Any, Any]]) -> list[str]:
    """Put everything back; names of the public attributes that really differed."""
    now, changed = module.__dict__, []
    for name in [name for name in now if name not in old and name not in _TABLES]:
        if _tells(None, now.pop(name)):
            changed.append(name)
    for name, (value, contents) in old.items():
        if now.get(name, now) is not value:  # torch.export puts back equal copies of some
            if _tells(value, now.get(name)):
                changed.append(name)
            now[name] = value
        if type(value) is list and not _same(value, contents):
            value[:] = contents
            changed.append(name)
        elif type(value) is dict and not _same(list(value.items()), list(contents.items())):
            value.clear()
            value.update(contents)
            changed.append(name)
    return [name for name in dict.fromkeys(changed) if not name.startswith("_")]


def _tells(old: Any, new: Any) -> bool:
    """Whether an attribute that went from `old` to `new` is state a user may count on."""
    if isinstance(new, torch.Tensor):
        return True
    return isinstance(new, (bool, int, float, str)) and (type(old) is not type(new) or old != new)


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        x is y or (type(x) is tuple and _same(list(x), list(y))) for x, y in zip(a, b)
    )
