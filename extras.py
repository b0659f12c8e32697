"""Packages that only some of subquad needs."""

from __future__ import annotations

import importlib
from typing import Any

from .ir import SubquadError


def extra(module: str, name: str, purpose: str) -> Any:
    """The module that the extra `name` brings. Raises SubquadError with the pip line without it."""
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        raise SubquadError(
            f"{purpose} needs {module}, which is not installed ({missing})\n"
            f"    pip install 'subquad[{name}]', or in a checkout:"
            f" pip install -c constraints.txt -e '.[{name}]'"
        ) from missing
