"""Tables as text: how figures read, and columns that keep inside a width."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table

WIDTH = 110
"""Columns of what `str()` of a log or a comparison gives."""


def grid(*columns: str) -> Table:
    """A table without lines, for logs; a column whose name ends in ">" is right-aligned."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        right = name.endswith(">")
        justify: Literal["left", "right"] = "right" if right else "left"
        table.add_column(name.rstrip(">"), justify=justify, no_wrap=right, overflow="fold")
    return table


def plain(*parts: RenderableType, width: int = WIDTH) -> str:
    """What rich would show, as text without colour codes or trailing blanks.

    A table that cannot be made as narrow as `width` keeps its figures and is wider.
    """
    lines: list[str] = []
    for part in parts:
        narrowest = Measurement.get(*_console(1000), part).minimum if _has_table(part) else 0
        console, _ = _console(max(width, narrowest))
        console.print(part)
        lines += console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines)


def _has_table(part: RenderableType) -> bool:
    return isinstance(getattr(part, "renderable", part), Table)


def _console(width: int) -> tuple[Console, ConsoleOptions]:
    console = Console(
        file=io.StringIO(), width=width, color_system=None, force_terminal=False, force_jupyter=False,
        legacy_windows=False, emoji=False, markup=False, highlight=False,
    )  # fmt: skip
    return console, console.options


def count(n: float, step: int = 1000) -> str:
    """`1.5 G`: three figures and a prefix; a trailing blank when there is no prefix."""
    prefixes = ["", "K", "M", "G", "T", "P"]
    while abs(n) >= step and len(prefixes) > 1:
        n /= step
        del prefixes[0]
    return f"{n:.3g} {prefixes[0]}"


def error(e: float | None) -> str:
    """An error for a table: `-` where it was not measured."""
    return "-" if e is None else "0" if e == 0 else f"{e:.1e}"


def op_markdown(ops: Mapping[str, Any]) -> str:
    """The vocabulary as a table in Markdown, for docs/ops.md: op, aten overloads, what it computes."""
    rows = [("op", "aten overloads", "what it computes"), ("---",) * 3]
    for name, defn in ops.items():
        what = defn.doc.splitlines()[0] if defn.doc else "-"
        aten = ", ".join(f"`{overload}`" for overload in defn.aten)
        rows.append((f"`{name}`", aten or "-", what.replace("|", "\\|")))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@contextlib.contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """A line on the terminal that says what is being done; nothing where stderr is a file."""
    from rich.live import Live
    from rich.spinner import Spinner

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    spinner = Spinner("dots", "starting")
    # with stdout in a file, rich must not print it on the terminal instead
    redirect = sys.stdout.isatty()
    with Live(spinner, console=console, transient=True, redirect_stdout=redirect):
        yield lambda text: spinner.update(text=text)
