"""Which way the model's own `if`s on sizes went while it was captured.

torch.export settles `if x.shape[0] == 1` from the assumption that a dynamic size is at least 2,
records nothing, and the exported program is then silently wrong at 1. Here every truth value that
user code asks of a symbolic condition is kept, and becomes a check of each call.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .source import decides, user_frame


@contextmanager
def decisions() -> Iterator[list[tuple[Any, bool, str]]]:
    """A block that lists `(expression, truth, user's line)` of conditions decided in user code.

    Only the calling thread's are listed. Hold the export lock: the hook is process-wide.
    """
    found: list[tuple[Any, bool, str]] = []
    original = torch.SymBool.__bool__
    owner = threading.get_ident()

    def decide(self: torch.SymBool) -> bool:
        truth = original(self)
        if threading.get_ident() == owner:
            frame = sys._getframe(1)
            if decides(frame.f_code.co_filename):
                found.append((self.node.expr, truth, user_frame(frame)))
        return truth

    torch.SymBool.__bool__ = decide  # type: ignore[method-assign]
    try:
        yield found
    finally:
        torch.SymBool.__bool__ = original  # type: ignore[method-assign]
