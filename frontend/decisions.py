"""What the model's own code asked about sizes and memory layout while it was captured.

torch.export settles `if x.shape[0] == 1` from the assumption that a dynamic size is at least 2,
records nothing, and the exported program is then silently wrong at 1; and `if x.is_contiguous()` is
answered for the example. Here every such answer given to user code is kept, and becomes a check of
each call.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .source import decides, inside_torch, user_frame

_LAYOUT = frozenset({torch.Tensor.is_contiguous, torch.Tensor.stride})


@dataclass
class Decided:
    """sizes: `(expression, truth, user's line)` of conditions. layout: a line that asked for strides."""

    sizes: list[tuple[Any, bool, str]] = field(default_factory=list)
    layout: str = ""


@contextmanager
def decisions(layout: bool = True) -> Iterator[Decided]:
    """A block that notes what user code of this thread decides. Hold the export lock.

    layout=False leaves the layout out (Dynamo cannot trace through a mode).
    """
    found = Decided()
    original = torch.SymBool.__bool__
    owner = threading.get_ident()

    def decide(self: torch.SymBool) -> bool:
        truth = original(self)
        if threading.get_ident() == owner:
            frame = sys._getframe(1)
            while frame.f_back and frame.f_code.co_filename == __file__:  # a mode that passes the call on
                frame = frame.f_back
            if decides(frame.f_code.co_filename):
                found.sizes.append((self.node.expr, truth, user_frame(frame)))
        return truth

    torch.SymBool.__bool__ = decide  # type: ignore[method-assign]
    try:
        if layout:
            with _Asked(found):
                yield found
        else:
            yield found
    finally:
        torch.SymBool.__bool__ = original  # type: ignore[method-assign]


class _Asked(TorchFunctionMode):
    """Notes the user's line that reads a tensor's strides."""

    def __init__(self, found: Decided):
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LAYOUT and not self.found.layout:
            frame = sys._getframe(1)
            while frame.f_back and frame.f_code.co_name == "__torch_function__":  # export's own mode
                frame = frame.f_back
            if not inside_torch(frame.f_code.co_filename):
                self.found.layout = user_frame(frame)
        return func(*args, **(kwargs or {}))
