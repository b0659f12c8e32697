"""The zoo in figures: a line for each family, and the models that are not as they should be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from subquad.tables import error, grid, plain

from .case import FAMILIES
from .run import Result

COLUMNS = (
    "family", "models", "built", "captured", "equal", "bit for bit", "worst error", "softmaxes",
    "attention", "kept", "no attention", "missed", "second shape", "capture s", "passes s",
)  # fmt: skip
"""kept: attention in a spelling that stays, with a reason. missed: softmaxes that are not among the sites.
second shape: equal of those tried, left-padded for language models. Seconds are medians."""


def rows(results: Iterable[Result]) -> list[tuple[str, ...]]:
    """The cells of the table, a row for each family that has results, and one for all."""
    results = list(results)
    found = [_row(family, [r for r in results if r.family == family]) for family in FAMILIES]
    return [row for row in [*found, _row("all", results)] if row[1] != "0"]


def text(results: Iterable[Result], width: int = 180) -> str:
    """The table, and a line for each model that is not equal, as plain text."""
    results = list(results)
    table = grid(COLUMNS[0], *(f"{name}>" for name in COLUMNS[1:]))
    for row in rows(results):
        table.add_row(*row)
    wrong = [f"{r.id}: {r.first.status}: {r.first.reason}" for r in results if r.first.status != "equal"]
    wrong += [
        f"{r.id}, second shape: {r.second.status}: {r.second.reason}"
        for r in results
        if r.second is not None and r.second.status != "equal"
    ]
    return "\n".join([plain(table, width=width), *wrong])


def markdown(results: Iterable[Result]) -> str:
    """The table in Markdown."""
    lines = [COLUMNS, ("---",) + ("---:",) * (len(COLUMNS) - 1), *rows(results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(name: str, results: Sequence[Result]) -> tuple[str, ...]:
    firsts = [r.first for r in results]
    ran = [call for call in firsts if call.status in ("equal", "differs")]
    seconds = [r.second for r in results if r.second is not None and r.first in ran]
    missed = sum(
        max(0, r.softmaxes - r.first.recognised - r.first.kept - r.first.others)
        for r in results
        if r.first in ran
    )
    errors = [call.error for call in ran if call.error is not None]
    figures = (
        len(results),
        sum(call.status != "unbuilt" for call in firsts),
        len(ran),
        sum(call.status == "equal" for call in ran),
        sum(call.bits for call in ran),
        error(max(errors, default=None)),
        sum(r.softmaxes for r in results if r.first in ran),
        sum(call.recognised for call in ran),
        sum(call.kept for call in ran),
        sum(call.others for call in ran),
        missed,
        f"{sum(call.status == 'equal' for call in seconds)} of {len(seconds)}" if seconds else "-",
        f"{median(call.seconds['capture'] for call in ran):.2f}" if ran else "-",
        f"{median(call.passes for call in ran):.3f}" if ran else "-",
    )
    return (name, *map(str, figures))
