"""python -m tests.models [-k TEXT] [--shard i/n] [--results FILE] [--accept]"""

from __future__ import annotations

import argparse
from pathlib import Path

from .case import cases
from .run import Result, sweep


def main() -> None:
    """Run models of the zoo and print a line each."""
    parser = argparse.ArgumentParser(prog="python -m tests.models", description="Run the model zoo.")
    parser.add_argument("-k", metavar="TEXT", default="", help="models with TEXT in name or family")
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="every N-th model, from the I-th")
    parser.add_argument("--results", metavar="FILE", type=Path, help="keep results here, and go on from it")
    given = parser.parse_args()
    i, n = map(int, given.shard.split("/"))
    chosen = [c for c in cases().values() if given.k in c.id][i - 1 :: n]

    def say(r: Result) -> None:
        print(
            r.id,
            r.first.status,
            r.first.error,
            r.first.reason,
            r.second and r.second.status,
            r.second and r.second.reason,
            f"{r.first.recognised}+{r.first.explained}/{r.softmaxes}",
            r.first.masks,
            r.first.heads,
            flush=True,
        )

    sweep(chosen, given.results, say)


if __name__ == "__main__":
    main()
