"""Overloads spelt unlike any op: small functions from the schema's arguments to values.

An adapter takes the overload's arguments by schema name and `out`, the observed result types, and
returns a value, a tuple of them, or None where it cannot say it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ADAPTERS: dict[str, Callable[..., Any]] = {}
"""Adapters by overload name."""


def adapter(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function for overloads of these names."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            ADAPTERS[name] = function
        return function

    return register


@adapter("clone.default", "contiguous.default", "alias.default", "detach.default",
         "lift_fresh_copy.default", "lift_fresh.default")  # fmt: skip
def identity(*, self, out, **_):
    """Copies and storage orders mean nothing in an IR without storage."""
    return self
