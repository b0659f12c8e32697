"""The table of what every model of the zoo comes to: one line a model, in `expected.txt`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .run import STATUS, Call, Result

EXPECTED = Path(__file__).with_name("expected.txt")

LONGEST = 200
"""Characters of a reason."""

HEADER = """\
# What every model of the zoo comes to, rewritten by `python -m tests.models --accept`.
# id | status | attention + kept + none / softmaxes run | masks | query/key heads | second shape | reason
"""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    sites: attentions recognised, attentions kept as they are written, softmaxes that are none (both with
    a reason), and softmaxes that the original ran.
    masks, heads: of the attentions. second: status of the call at another shape, "-" where there is
    none, and its masks where they are others. reason: why the status is not "equal".
    """

    id: str
    status: str
    sites: tuple[int, int, int, int]
    masks: str
    heads: str
    second: str
    reason: str

    @staticmethod
    def of(result: Result) -> Row:
        """The line of a result."""
        first, second = result.first, result.second
        other = "-" if second is None else second.status
        if second is not None and second.sites and _masks(second) != _masks(first):
            other += f" ({_masks(second)})"
        why = [first.reason] if first.reason else []
        if second is not None and second.reason not in ("", first.reason):
            why.append(f"second: {second.reason}")
        return Row(
            result.id, first.status, (first.recognised, first.kept, first.others, result.softmaxes),
            _masks(first), first.heads or "-", other, "; ".join(why)[:LONGEST],
        )  # fmt: skip

    def __str__(self) -> str:
        *found, ran = self.sites
        sites = f"{' + '.join(map(str, found))} / {ran}"
        cells = (self.id, self.status, sites, self.masks, self.heads, self.second, self.reason)
        return " | ".join(cells).rstrip(" |")

    @staticmethod
    def parse(line: str) -> Row:
        """The row of a line."""
        cells = [cell.strip() for cell in line.split(" | ", 6)]
        found, kept, others, ran = map(int, cells[2].replace("+", " ").replace("/", " ").split())
        sites = (found, kept, others, ran)
        return Row(cells[0], cells[1], sites, *cells[3:6], *(cells[6:] or [""]))

    def worse_than(self, old: Row) -> list[str]:
        """What got worse since `old`; masks may not change at all."""
        found = []
        if STATUS.index(self.status) > STATUS.index(old.status):
            found.append(f"it was {old.status} and is {self.status}: {self.reason}")
        if self.sites[0] < old.sites[0]:
            found.append(f"{old.sites[0]} attentions were recognised, now {self.sites[0]}")
        if self.masks != old.masks and self.status == old.status:
            found.append(f"its masks were {old.masks}, now {self.masks}")
        ranks = [row.second.split(" ")[0] for row in (old, self)]
        if all(rank in STATUS for rank in ranks) and STATUS.index(ranks[1]) > STATUS.index(ranks[0]):
            found.append(f"at the second shape it was {old.second} and is {self.second}: {self.reason}")
        elif self.second != old.second and ranks[0] == ranks[1]:
            found.append(f"at the second shape it was {old.second} and is {self.second}")
        return found


def _masks(call: Call) -> str:
    return ", ".join(f"{kind} {n}" for kind, n in call.masks.items()) or "-"


def expected() -> dict[str, Row]:
    """The checked-in rows, by id."""
    lines = EXPECTED.read_text(encoding="utf-8").splitlines() if EXPECTED.exists() else []
    rows = (Row.parse(line) for line in lines if line and not line.startswith("#"))
    return {row.id: row for row in rows}


def accept(results: Iterable[Result], ids: Iterable[str]) -> None:
    """Rewrite the lines of `results`; lines of models that are no longer in `ids` go."""
    known = set(ids)
    rows = {id: row for id, row in expected().items() if id in known}
    rows |= {result.id: Row.of(result) for result in results}
    lines = [HEADER, *(f"{rows[id]}\n" for id in sorted(rows))]
    EXPECTED.write_text("".join(lines), encoding="utf-8")
