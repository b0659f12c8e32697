"""What a backend is, the registry, and what every torch-calling backend shares."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ..ir.errors import BackendError
from ..ir.graph import Graph
from ..ir.types import DTYPES, DType

Executable = Callable[
    [Sequence[Tensor], Mapping[str, Tensor]], tuple[list[Tensor], dict[str, Tensor]]
]
"""`(inputs, tensors by param name) -> (outputs, updates by buffer or input name)`."""


class Backend(Protocol):
    """Turns a graph into something that runs."""

    name: str

    def unavailable(self) -> str | None:
        """Why this backend cannot run here, and what to do about it; None when it can."""

    def compile(self, graph: Graph, modules: Mapping[str, nn.Module] = {}) -> Executable:
        """Prepare `graph` once. modules: the bodies of higher-order ops, by name.

        Raises BackendError for a graph this backend cannot run.
        """


BACKENDS: dict[str, Backend] = {}
"""Backends by name; `register` fills it."""


def register(backend: Backend) -> Backend:
    """Add a backend under its name."""
    BACKENDS[backend.name] = backend
    return backend


def backend(name: str) -> Backend:
    """The backend called `name`. Raises BackendError where there is none or it cannot run here."""
    if name not in BACKENDS:
        close = difflib.get_close_matches(name, BACKENDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise BackendError(f"no backend is called {name!r}; there are {', '.join(BACKENDS)}{hint}")
    found = BACKENDS[name]
    reason = found.unavailable()
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot run here: {reason}")
    return found


TORCH_DTYPE: dict[DType, torch.dtype] = {t: getattr(torch, t.torch) for t in DTYPES.values()}
"""The torch dtype of each dtype of the IR."""
