"""python -m tests.models: the model zoo, or a part of it, from the command line.

python -m tests.models -k causal-lm/llama                 a line for each model, and a summary
python -m tests.models --results zoo.jsonl                keep results; the same command goes on from them
python -m tests.models --shard 1/2 --results zoo1.jsonl   every second model
python -m tests.models --results zoo.jsonl --accept       rewrite expected.txt and docs/models.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from . import page, summary
from .case import cases
from .run import Result
from .serve import sweep
from .table import Row, expected


def main() -> None:
    """Run models of the zoo; print what got worse and a summary."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tests.models", description=__doc__, formatter_class=raw)
    parser.add_argument("-k", metavar="TEXT", default="", help="only models whose family/name has TEXT in it")
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="every N-th model, from the I-th")
    parser.add_argument("--results", metavar="FILE", type=Path, help="keep results here, and go on from them")
    parser.add_argument("--accept", action="store_true", help="rewrite what is expected of those that ran")
    given = parser.parse_args()
    i, n = map(int, given.shard.split("/"))
    known = expected()
    chosen = [c for c in cases().values() if given.k in c.id][i - 1 :: n]

    def say(result: Result) -> None:
        row = Row.of(result)
        print(row, flush=True)
        for line in row.worse_than(known[row.id]) if row.id in known else ():
            print(f"    WORSE: {line}", flush=True)

    results = sweep(chosen, given.results, say)
    if given.accept:
        page.accepted(results)
    print(summary.text(results))
