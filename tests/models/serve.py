"""Each model in a process of its own, with limits on its time and memory: one bad model ends nothing.

    with Server() as server:
        result = server.run(case)

The server is a Python process that has imported everything and made one capture (two thousand more
modules); it forks for every case. Ids go to it and results come back as lines of text.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .case import Case, cases
from .run import Call, Result

SECONDS = 900
"""A process that takes longer is ended."""

MEMORY = 6 << 30
"""Bytes of data a model's process may hold."""


class Server(contextlib.AbstractContextManager["Server"]):
    """The process that forks; started by the first `run`, ended with the block."""

    process: subprocess.Popen[str] | None = None

    def run(self, case: Case, once: bool = False) -> Result:
        """The result of `run.run`, whatever the case does. Raises RuntimeError where no case can be run."""
        if self.process is None or self.process.poll() is not None:
            package = __name__.rpartition(".")[0]
            root = Path(__file__).parents[len(package.split("."))]
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        process: Any = self.process
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{case.id} {int(once)}\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"subquad or the zoo cannot be loaded: {__name__} ended, its reason is above")
        return Result.from_json(line)

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()  # type: ignore[union-attr]
            self.process.wait()


def ended(id: str, reason: str) -> Result:
    """The result of a case whose process gave none."""
    family, name = id.split("/", 1)
    return Result(name, family, Call("crashed", reason))


def serve() -> None:
    """Read ids, write results, one line each, until there are no more."""
    import torch

    import subquad

    from .run import run

    answers = os.fdopen(os.dup(1), "w")
    known = cases()
    torch.set_num_threads(1)
    shapes = ({0: "b"},)
    subquad.optimize(torch.nn.Linear(4, 4).eval(), (torch.ones(2, 4),), dynamic_shapes=shapes)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what models print while they are traced
    os.dup2(nowhere, 2)
    gc.freeze()  # or the first collection of every child would copy what they all share
    for line in sys.stdin:
        id, once = line.split()
        read, write = os.pipe()
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            try:
                with os.fdopen(write, "w") as file:
                    file.write(run(known[id], once == "1").to_json())
                os._exit(0)
            finally:
                os._exit(1)
        os.close(write)
        text = received(read, time.monotonic() + SECONDS)
        if text is None:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        reason = f"its process ended with {status}" if text == "" else f"no result after {SECONDS} s"
        answers.write((text or ended(id, reason).to_json()) + "\n")
        answers.flush()


def received(read: int, deadline: float) -> str | None:
    """What is written to a pipe until it is closed; None when that is not before the deadline."""
    parts = []
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = pipe.read(1 << 16)
            if not part:
                return b"".join(parts).decode()
            parts.append(part)
    return None


def sweep(
    chosen: Iterable[Case], done: Path | None = None, say: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """Results of many cases, one after the other. done: a file of results to which new ones are
    added, line by line; cases that are in it are not run again."""
    known = {}
    if done is not None and done.exists():
        known = {r.id: r for r in map(Result.from_json, done.read_text().splitlines())}
    results = []
    with Server() as server:
        for case in chosen:
            result = known.get(case.id)
            if result is None:
                result = server.run(case)
                if done is not None:
                    with done.open("a") as file:
                        file.write(result.to_json() + "\n")
                say(result)
            results.append(result)
    return results


if __name__ == "__main__":
    serve()
