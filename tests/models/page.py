"""What docs/models.md shows of the zoo: one table from a run, one from what is expected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .case import cases
from .run import Result
from .summary import markdown
from .table import Row, accept, expected

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

PEERS = {
    "Llama, 2 key heads for 4": "causal-lm/llama-",
    "Llama, 4 for 4": "causal-lm/llama-mha-",
    "Qwen3": "causal-lm/qwen3-",
    "Mistral": "causal-lm/mistral-",
    "Gemma2": "causal-lm/gemma2-",
    "Phi3": "causal-lm/phi3-",
    "GPT-2": "causal-lm/gpt2-",
    "OPT": "causal-lm/opt-",
    "Bloom": "causal-lm/bloom-",
    "Falcon": "causal-lm/falcon-",
    "BERT": "encoder/bert-",
    "DistilBERT": "encoder/distilbert-",
    "T5 encoder": "encoder/t5-encoder-",
    "ViT": "vision/vit-",
}
"""The families of the headline; cases without a suffix run in eager attention."""


def accepted(results: Sequence[Result]) -> None:
    """Rewrite the lines of `results`, and the page; its first table needs results of every model."""
    accept(results, cases())
    rewrite("peers", peers(expected()))
    if {result.id for result in results} == set(cases()):
        rewrite("families", markdown(results))


def peers(rows: Mapping[str, Row]) -> str:
    """The headline in Markdown: layers recognised and their masks, in eager attention and in SDPA."""
    lines = ["| model | written out | as SDPA | heads, query/key |", "| --- | --- | --- | --- |"]
    for title, prefix in PEERS.items():
        eager = rows.get(f"{prefix}eager") or rows.get(prefix.rstrip("-"))
        cells = [_cell(row) for row in (eager, rows.get(f"{prefix}sdpa"))]
        lines.append(f"| {title} | {' | '.join(cells)} | {eager.heads if eager else '-'} |")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row.status != "equal":
        return row.status
    found, *_, ran = row.sites
    return f"{found} of {ran}: {re.sub(r' [0-9]+', '', row.masks)}"


def block(name: str) -> str:
    """What stands between `<!-- name: begin -->` and `<!-- name: end -->` on the page."""
    return _pattern(name).search(PAGE.read_text(encoding="utf-8"))[2]  # type: ignore[index]


def rewrite(name: str, text: str) -> None:
    """Put `text` between the marks of `name`."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_pattern(name).sub(lambda match: f"{match[1]}{text}{match[3]}", page), encoding="utf-8")


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}: begin -->\n)(.*?)(\n<!-- {name}: end -->)", re.DOTALL)
