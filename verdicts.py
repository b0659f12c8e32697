"""What people read about the attentions of a model: a table, or a block of text for each.

fast.sites                       every softmax, identical layers in one row
fast.log.why("attention")        each with its mask, or with what failed and what to change
subquad.explain(model, args)     the same without compiling anything
"""

from __future__ import annotations

import fnmatch
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from .passes import Site
from .passes.sites import STATUSES
from .tables import WIDTH, grid, plain

INDENT, LABEL = 4, 10
EMPTY = {"zero": "0", "nan": "NaN", "uniform": "the mean of all values"}


class Sites(tuple[Site, ...]):
    """The softmaxes of a model in the order of its graph; prints as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table()

    def text(self, width: int = WIDTH) -> str:
        """The table as plain text of `width` columns."""
        return plain(self._table(), width=width) if self else NOTHING

    def at(self, name: str) -> Sites:
        """The sites of the module called `name` and below it, or that fit it as a glob, or failing
        that, whose source contains it."""
        for fits in (
            lambda s: s.path == name or s.path.startswith(f"{name}.") or fnmatch.fnmatchcase(s.path, name),
            lambda s: bool(name) and name.lower() in s.source.lower(),
        ):
            found = Sites(filter(fits, self))
            if found:
                return found
        return Sites()

    def groups(self) -> list[Sites]:
        """Sites that differ in the numbers in their path only, together; in order of the first."""
        found: dict[Any, list[Site]] = {}
        for site in self:
            found.setdefault(_likeness(site), []).append(site)
        return [Sites(group) for group in found.values()]

    def summary(self) -> str:
        """`6 softmaxes: 4 attention, 1 kept, 1 not attention`."""
        counts = [(sum(site.status == status for site in self), status) for status in STATUSES]
        shown = ", ".join(f"{n} {status}" for n, status in counts if n)
        return f"{len(self)} softmax{'es' if len(self) > 1 else ''}: {shown}" if self else NOTHING

    def explain(self, width: int = WIDTH, *, counterexamples: bool = True) -> str:
        """A block of text for each group of like sites: what it is, its mask, or what failed.

        counterexamples: also evaluate dense masks for a pair of query and key that shows why.
        """
        blocks = ["\n".join(_block(group, width, counterexamples)) for group in self.groups()]
        return "\n\n".join((self.summary(), *blocks))

    def _table(self) -> Table:
        table = grid("where", "line>", "n>", "mask", "heads>", "width>", "q x k", "by", "why")
        for group in self.groups():
            s = group[0]
            known = s.q_heads is not None
            table.add_row(
                paths(group), line(s), str(len(group)), s.mask, heads(s) if known else "-",
                width(s) if known else "-", f"{s.q_len} x {s.k_len}" if known else "-",
                s.decision if s.status != "not attention" else "-", s.reason.split(". ")[0] or "-",
            )  # fmt: skip
        return table


NOTHING = (
    "no softmax in this model: attention is recognised from a softmax or from "
    "scaled_dot_product_attention, and there is neither (branches of torch.cond are not looked at)"
)


def _likeness(site: Site) -> tuple[Any, ...]:
    facts = site.to_dict()
    path = tuple("*" if part.isdecimal() else part for part in facts.pop("path").split("."))
    line = facts.pop("source").partition(" (")[2]
    return path, line, *((name, _unnumbered(repr(fact))) for name, fact in facts.items())


def _unnumbered(text: str) -> str:
    """Text that says the same of `layers.3.attn` and of `layers.4.attn`."""
    return re.sub(r"\b([A-Za-z_]\w*)((?:\.\d+)+)(?=\.[A-Za-z_])", _starred, text)


def _starred(found: re.Match[str]) -> str:
    return found[1] + ".*" * found[2].count(".")


def heads(site: Site) -> str:
    """`8`, or `8/2` where eight query heads share two key heads."""
    return str(site.q_heads) if site.q_heads == site.kv_heads else f"{site.q_heads}/{site.kv_heads}"


def width(site: Site) -> str:
    """`64`, or `64/32` where values are narrower than keys."""
    return str(site.head_dim) if site.head_dim == site.v_dim else f"{site.head_dim}/{site.v_dim}"


# ---- where ---------------------------------------------------------------------------------------


def paths(sites: Sequence[Site]) -> str:
    """The paths of like sites as one: `layers.0-11.attn`."""
    return ", ".join(collapsed([site.path or "the model" for site in sites]))


def line(site: Site) -> str:
    """Its line, `model.py:178`; nothing where that is its path already."""
    return site.source.partition(" (")[2].rstrip(")")


def collapsed(found: Iterable[str]) -> list[str]:
    """Paths with the numbers in which they differ joined: layers.0.attn, layers.1.attn ->
    layers.0-1.attn; every path is in exactly one of the results, and nothing else is."""
    rows = list(dict.fromkeys(tuple(path.split(".")) for path in found))
    for i in reversed(range(max((len(row) for row in rows), default=0))):
        joined: dict[tuple[Any, ...], list[str]] = {}
        for row in rows:
            number = len(row) > i and row[i].isdecimal()
            key = (*row[:i], None, *row[i + 1 :]) if number else row
            joined.setdefault(key, []).append(row[i] if number else "")
        rows = [
            (*key[:i], ranges(map(int, numbers)), *key[i + 1 :]) if None in key else key
            for key, numbers in joined.items()
        ]
    return [".".join(row) for row in rows]


def ranges(numbers: Iterable[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3 and 7."""
    parts: list[list[int]] = []
    for n in sorted(set(numbers)):
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


# ---- a block -------------------------------------------------------------------------------------


def _block(group: Sites, width: int, counterexamples: bool) -> Iterator[str]:
    site = group[0]
    place = f"{paths(group)} ({line(site)})" if line(site) else paths(group)
    count = f"{len(group)} x " if len(group) > 1 else ""
    yield from textwrap.wrap(f"{place}: {count}{_verdict(site)}", width, subsequent_indent=" " * INDENT)
    for label, text in _lines(site, counterexamples):
        if any(text not in dict(_lines(other, False)).values() for other in group[1:]) and label != "e.g.":
            text = _unnumbered(text)
        lead = " " * INDENT + label.ljust(LABEL)
        yield from textwrap.wrap(
            text, width, initial_indent=lead, subsequent_indent=" " * len(lead), break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip


def _verdict(site: Site) -> str:
    if site.status == "kept":
        return "attention, kept as it is written"
    if site.status == "attention" and site.decision != "attention":
        return f"attention, replaced by {site.decision}"
    return site.status


def _lines(site: Site, counterexamples: bool) -> Iterator[tuple[str, str]]:
    if site.q_heads is not None:
        yield "shape", _shape(site)
        yield "mask", mask_text(site)
    if counterexamples and site.counterexample:
        yield "e.g.", site.counterexample
    if site.reason and (site.proof is None or site.reason != site.proof.reason):
        yield "because", site.reason
    if site.at and site.at != site.source:
        yield "at", site.at
    if site.remedy:
        yield "change", site.remedy


def _shape(site: Site) -> str:
    plural = "" if site.q_heads == 1 else "s"
    text = f"{heads(site)} head{plural} of {width(site)}, {site.q_len} queries x {site.k_len} keys"
    text += f", scale {site.scale:.6g}" if site.scale is not None else ""
    text += f", soft-capped at {site.softcap:g}" if site.softcap is not None else ""
    return text + (", with a sink" if site.sink else "")


def mask_text(site: Site) -> str:
    """What a query sees, in words: `causal (j <= i) + padding (from input attention_mask)`."""
    if site.mask == "dense":
        return f"not proved: {site.proof.reason}" if site.proof else "not proved"
    if site.mask in ("none", "?"):
        return "none: every query sees every key" if site.mask == "none" else "unknown"
    parts = site.mask.split("+")
    past = {"window": "past window"} if "causal" in parts else {}
    text = " + ".join(f"{part} ({_PARTS[past.get(part, part)](site.parameters)})" for part in parts)
    if site.parameters.get("hard") is False:
        text += "; masked scores are lowered by a finite number"
    if site.empty in ("nan", "uniform") and {"padding", "packed"} & {*parts}:
        text += f"; a row without any key gives {EMPTY[site.empty]}"
    return text


def _position(p: dict[str, Any]) -> str:
    return f"i + {p['offset']}" if "offset" in p else "i"


_PARTS: dict[str, Any] = {
    "causal": lambda p: f"key j <= query {_position(p)}",
    "window": lambda p: f"|{_position(p)} - j| < {p.get('window')}",
    "past window": lambda p: f"{_position(p)} - j < {p.get('window')}",
    "chunked": lambda p: f"keys of the same {p.get('chunk')} positions",
    "prefix": lambda p: f"the first {p.get('prefix')} keys are seen by all",
    "packed": lambda p: f"sequences told apart by {_some(p['segments'])}",
    "padding": lambda p: f"keys kept by {_some(p['padding'])}",
    "alibi": lambda p: f"slopes {_slopes(p.get('slopes'))}",
    "relative": lambda p: f"a bias by j - i, from {_some(p['relative'])}",
    "bias": lambda p: f"added to the scores, from {_some(p['bias'])}",
}


def _some(names: str) -> str:
    """The first two names of many."""
    first, *rest = names.split(", ")
    return names if len(rest) < 2 else f"{first}, {rest[0]} and {len(rest) - 1} more"


def _slopes(slopes: Any) -> str:
    if not isinstance(slopes, list):
        return f"from {slopes}"
    shown = [f"{x:.4g}" for x in slopes]
    return ", ".join(shown if len(shown) <= 4 else [*shown[:2], "...", shown[-1]])
