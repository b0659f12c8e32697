"""Weights that go down on losses of their own: Adam, judged on batches held out."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .calibration import Batch

HELD = 0.2
"""Which part of the batches is held out to judge, and the most of them."""
MOST = 8

LOOKS = 16
"""How often the held-out batches are looked at in a run."""

SLOWER = 0.4
"""What the step size is multiplied by where a look finds nothing better."""

STILL = 0.02
"""The share of the first step size below which there is nothing more to gain."""

Progress = Callable[[str], None]


class Run:
    """Groups of weights that are fitted at once, each with a loss of its own, and the best seen of each.

    names: weights by group. live: those being changed, by name. best, least: by group the weights of the
    least loss on the held-out batches, and that loss; first: what it was at the start. sizes: what a step
    of a weight is relative to, by name.
    """

    def __init__(
        self, names: Mapping[int, Sequence[str]], weights: Mapping[str, Tensor], sizes: Mapping[str, float]
    ):
        self.names = {group: tuple(found) for group, found in names.items()}
        self.live = {
            n: weights[n].detach().clone().requires_grad_() for found in self.names.values() for n in found
        }
        self.sizes = sizes
        self.best: dict[int, dict[str, Tensor]] = {group: self.now(group) for group in self.names}
        self.first: dict[int, float] = {}
        self.least: dict[int, float] = dict.fromkeys(self.names, math.inf)

    def losses(self, batch: Batch) -> dict[int, tuple[Tensor, Tensor]]:
        """By group a sum of errors over the batch, and the sum that it is relative to."""
        raise NotImplementedError

    def now(self, group: int) -> dict[str, Tensor]:
        """Copies of a group's weights as they are."""
        return {n: self.live[n].detach().clone() for n in self.names[group]}

    @torch.no_grad()
    def to(self, group: int, weights: Mapping[str, Tensor]) -> None:
        """Give a group's weights these values."""
        for n in self.names[group]:
            self.live[n].copy_(weights[n])

    @torch.no_grad()
    def look(self, held: Sequence[Batch]) -> set[int]:
        """Measure the groups on the held-out batches, and keep what is better; the groups that are."""
        sums = {group: [0.0, 0.0] for group in self.names}
        for batch in held:
            for group, pair in self.losses(batch).items():
                for i, x in enumerate(pair):
                    sums[group][i] += float(x)
        better = set()
        for group, (above, below) in sums.items():
            loss = above / below if below > 0 else above
            self.first.setdefault(group, loss)
            if loss < self.least[group]:  # never true of NaN
                better.add(group)
                self.least[group], self.best[group] = loss, self.now(group)
        return better


def size(x: Tensor) -> float:
    """What a step of a weight that starts as x is relative to: its root mean square (arXiv:1804.04235).

    A weight that starts at 0 counts as a matrix that keeps the size of what it reads.
    """
    found = float(x.detach().float().square().mean().sqrt())
    return found if found > 0 else max(1, x.shape[-1] if x.ndim else 1) ** -0.5


def descend(
    run: Run, train: Sequence[Batch], held: Sequence[Batch], *, seed: int, seconds: float, steps: int,
    rate: float, progress: Progress = lambda text: None,
) -> int:  # fmt: skip
    """Adam on all groups of a run, from the best of each to the best of each; the steps taken.

    rate: the first step as a share of the size of a weight. It falls to 0 in the end, and by `SLOWER` for
    a group that is found no better on the held-out batches, which then goes on from its best. A step that is
    not finite is not taken.
    """
    began, taken = time.perf_counter(), 0
    if not run.first:
        run.look(held)
    rates = dict.fromkeys(run.names, rate)
    for group in run.names:
        run.to(group, run.best[group])
    optimizer = torch.optim.Adam(
        [
            {"params": [run.live[n]], "size": run.sizes[n], "group": g}
            for g, names in run.names.items()
            for n in names
        ]
    )
    looked, last, least = 0.0, 0, 2 * len(held)  # so that looking is the smaller part
    for batch in _endless(train, seed):
        done = max(taken / steps if steps else 1.0, (time.perf_counter() - began) / max(seconds, 1e-9))
        if done >= 1 or all(x < STILL * rate for x in rates.values()):
            break
        for table in optimizer.param_groups:
            table["lr"] = rates[table["group"]] * (1 - done) * table["size"]
        _step(run, batch, optimizer)
        taken += 1
        if done - looked >= 1 / LOOKS and taken - last >= least:
            looked, last = done, taken
            for group in run.names.keys() - run.look(held):
                rates[group] *= SLOWER
                run.to(group, run.best[group])
            progress(f"step {taken}, held-out loss {sum(run.least.values()) / len(run.least):.3g}")
    run.look(held)
    for group in run.names:
        run.to(group, run.best[group])
    return taken


def _step(run: Run, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    """One step of the groups whose loss and gradients are finite; the others go back to their best."""
    optimizer.zero_grad(set_to_none=True)
    ratios = {group: above / below.clamp(min=1e-30) for group, (above, below) in run.losses(batch).items()}
    finite = [ratio for ratio in ratios.values() if bool(ratio.isfinite())]
    if finite:
        torch.stack(finite).sum().backward()
    for group, ratio in ratios.items():
        found = [run.live[n] for n in run.names[group]]
        if not bool(ratio.isfinite()) or not all(x.grad is None or x.grad.isfinite().all() for x in found):
            run.to(group, run.best[group])
            for x in found:
                x.grad = None
                optimizer.state.pop(x, None)
    optimizer.step()


def parted(batches: Sequence[Batch], seed: int) -> tuple[list[Batch], list[Batch]]:
    """Batches to fit with and batches held out, by a seed; a single batch is both."""
    order = random.Random(seed).sample(list(batches), len(batches))
    held = min(MOST, max(1, round(HELD * len(order))))
    return (order[held:] or order), order[:held]


def _endless(batches: Sequence[Batch], seed: int) -> Iterator[Batch]:
    """The batches again and again, each time in another order."""
    draw = random.Random(seed)
    while True:
        yield from draw.sample(batches, len(batches))
