"""The weights that recipes add, fitted on the user's batches: layer by layer, then end to end.

    fitted = fit_layers(captured, graph, [(0, recipe_named("hedgehog")), ...], batches.fit)
    fast = assembled(model, captured, linearised, weights=fitted.weights)

Layer by layer, every site learns by itself to give what attention gives on the original model's own
queries, keys and values. A part of the batches is held out and judges: what is handed back is never worse
there than what it started from. Equal seeds give equal weights where the steps run out before the seconds.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from .calibration import Batch
from .frontend import Captured
from .ir import CalibrationError, Graph
from .passes import Recipe
from .taps import Taps

HELD = 0.2
"""Which part of the batches is held out to judge."""

LOOKS = 16
"""How often the held-out batches are looked at in a whole run."""

PATIENCE = 6
"""After how many looks without anything better a run ends."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Fitted:
    """What fitting gave.

    at: weights by name, for each position of `chosen`; none for a recipe that learns nothing. before, after:
    relative error of the site's output on the held-out batches, None where there was nothing to fit.
    refused: why, by position, where a recipe does not fit its site. steps, seconds: taken.
    """

    at: tuple[dict[str, Tensor], ...]
    before: tuple[float | None, ...]
    after: tuple[float | None, ...]
    refused: dict[int, str] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0

    @property
    def weights(self) -> dict[str, Tensor]:
        """Those of all positions. Two spellings of one recipe at one site share names: then read `at`."""
        return {name: x for weights in self.at for name, x in weights.items()}


def fit_layers(
    captured: Captured,
    graph: Graph,
    chosen: Sequence[tuple[int, Recipe]],
    batches: Sequence[Batch],
    *,
    seed: int = 0,
    seconds: float = 120.0,
    steps: int = 400,
    rate: float = 1e-2,
    grids: Mapping[str, str] = {},
    start: Mapping[str, Tensor] = {},
    progress: Progress | None = None,
) -> Fitted:
    """Fit each recipe at its site to attention's output there, by Adam on the relative squared error.

    graph: the captured model, simplified; chosen: (index in `find_sites(graph)`, recipe), a site may be
    named with several. Positions of one site are fitted one after another, those of different sites
    together, in shares of `seconds` and with `steps` each; rate: the step size at first, falling to 0.
    start: weights by name that are begun with, instead of the recipes' own. The tokens of padding do not
    count. One batch is in memory at a time. A step that is not finite is not taken: its weights go back
    to the best so far. Raises CalibrationError where there is no batch.
    """
    if not batches:
        raise CalibrationError("there is no batch to fit with; pass one or more")
    began, say = time.perf_counter(), progress or (lambda text: None)
    at: list[dict[str, Tensor]] = [{} for _ in chosen]
    before: list[float | None] = [None] * len(chosen)
    after, taken = list(before), 0
    refused: dict[int, str] = {}
    rounds = _rounds(chosen)
    for number, positions in enumerate(rounds):
        taps = Taps(captured, graph, [chosen[at] for at in positions], grids)
        refused |= {positions[i]: reason for i, reason in taps.refused.items()}
        left = sum(map(len, rounds[number:]))
        share = (seconds - (time.perf_counter() - began)) * len(positions) / left
        run = _Layers(taps, len(positions), start)
        if not run.names:
            continue
        title = ", ".join(dict.fromkeys(str(chosen[at][1]) for at in positions))
        taken += descend(
            run, batches, seed=seed, seconds=share, steps=steps, rate=rate,
            progress=partial(_said, say, title),
        )  # fmt: skip
        for i in run.names:
            position = positions[i]
            at[position] = run.best[i]
            before[position], after[position] = (math.sqrt(x) for x in (run.first[i], run.least[i]))
    return Fitted(tuple(at), tuple(before), tuple(after), refused, taken, time.perf_counter() - began)


def _said(say: Progress, title: str, text: str) -> None:
    say(f"{title}: {text}")


def _rounds(chosen: Sequence[tuple[int, Recipe]]) -> list[list[int]]:
    """Positions of `chosen` in groups that have each site once: so their weights have different names."""
    rounds: list[list[int]] = []
    met: dict[int, int] = {}
    for position, (site, _) in enumerate(chosen):
        which = met[site] = met.get(site, -1) + 1
        if which == len(rounds):
            rounds.append([])
        rounds[which].append(position)
    return rounds


# ---- descent -------------------------------------------------------------------------------------


class Run:
    """Groups of weights that are fitted at once, each with a loss of its own, and the best seen of each.

    names: weights by group. live: those being changed, by name. best, least: by group the weights of the
    least loss on the held-out batches, and that loss; first: what it was at the start.
    """

    def __init__(self, names: Mapping[int, Sequence[str]], weights: Mapping[str, Tensor]):
        self.names = {group: tuple(found) for group, found in names.items()}
        self.live = {
            n: weights[n].detach().clone().requires_grad_() for found in self.names.values() for n in found
        }
        self.best: dict[int, dict[str, Tensor]] = {g: self.now(g) for g in self.names}
        self.first: dict[int, float] = {}
        self.least: dict[int, float] = dict.fromkeys(self.names, math.inf)

    def losses(self, batch: Batch) -> dict[int, tuple[Tensor, Tensor]]:
        """By group a sum of errors over the batch, and the sum that it is relative to."""
        raise NotImplementedError

    def now(self, group: int) -> dict[str, Tensor]:
        """Copies of a group's weights as they are."""
        return {n: self.live[n].detach().clone() for n in self.names[group]}

    @torch.no_grad()
    def back(self, group: int) -> None:
        """A group's weights as they were at their best."""
        for n in self.names[group]:
            self.live[n].copy_(self.best[group][n])

    @torch.no_grad()
    def look(self, held: Sequence[Batch]) -> bool:
        """Measure the groups on the held-out batches and keep what is better; whether anything was."""
        sums = {group: [0.0, 0.0] for group in self.names}
        for batch in held:
            for group, pair in self.losses(batch).items():
                for i, x in enumerate(pair):
                    sums[group][i] += float(x)
        better = False
        for group, (above, below) in sums.items():
            loss = above / below if below > 0 else above
            self.first.setdefault(group, loss)
            if not math.isfinite(loss):
                self.back(group)
            elif loss < self.least[group]:
                better |= loss < 0.999 * self.least[group]
                self.least[group], self.best[group] = loss, self.now(group)
        return better


class _Layers(Run):
    """One group for each position of the taps that learns something."""

    def __init__(self, taps: Taps, count: int, start: Mapping[str, Tensor]):
        weights = taps.learned | {n: x for n, x in start.items() if n in taps.learned}
        names = {at: taps.names(at) for at in range(count) if at not in taps.refused}
        trains = {at: [n for n in found if taps.learned[n].requires_grad] for at, found in names.items()}
        super().__init__({at: found for at, found in trains.items() if found}, weights)
        self._taps = taps

    def losses(self, batch: Batch) -> dict[int, tuple[Tensor, Tensor]]:
        found = self._taps(batch.inputs, self.live)
        return {group: found[group].squares() for group in self.names}


def descend(
    run: Run, batches: Sequence[Batch], *, seed: int, seconds: float, steps: int, rate: float,
    progress: Progress = lambda text: None,
) -> int:  # fmt: skip
    """Adam on all groups of a run, which ends with the best of each as its weights; the steps taken."""
    train, held = parted(batches, seed)
    began, taken, idle = time.perf_counter(), 0, 0
    run.look(held)
    optimizer = torch.optim.Adam([run.live[n] for names in run.names.values() for n in names], lr=rate)
    every = max(1, steps // LOOKS, len(held))  # so that looking is the smaller part
    for batch in _endless(train, seed):
        done = max(taken / steps if steps else 1.0, (time.perf_counter() - began) / max(seconds, 1e-9))
        if done >= 1 or idle >= PATIENCE:
            break
        for table in optimizer.param_groups:
            table["lr"] = rate * (1 - done)
        _step(run, batch, optimizer)
        taken += 1
        if taken % every == 0:
            idle = 0 if run.look(held) else idle + 1
            mean = sum(map(math.sqrt, run.least.values())) / len(run.least)
            progress(f"step {taken}, held-out relative error {mean:.4f}")
    if taken % every:
        run.look(held)
    for group in run.names:
        run.back(group)
    return taken


def _step(run: Run, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    """One step; groups whose loss or gradient is not finite go back to their best instead."""
    optimizer.zero_grad(set_to_none=True)
    ratios = {g: above / below.clamp(min=1e-30) for g, (above, below) in run.losses(batch).items()}
    finite = [x for x in ratios.values() if bool(x.isfinite())]
    if finite:
        torch.stack(finite).sum().backward()
    for group, ratio in ratios.items():
        held = [run.live[n] for n in run.names[group]]
        if not bool(ratio.isfinite()) or not all(p.grad is None or p.grad.isfinite().all() for p in held):
            run.back(group)
            for p in held:
                p.grad = None
                optimizer.state.pop(p, None)
    optimizer.step()


def parted(batches: Sequence[Batch], seed: int) -> tuple[list[Batch], list[Batch]]:
    """Batches to fit with and batches held out, by a seed; a single batch is both."""
    order = random.Random(seed).sample(list(batches), len(batches))
    held = max(1, round(HELD * len(order)))
    return (order[held:] or order), order[:held]


def _endless(batches: Sequence[Batch], seed: int) -> Iterator[Batch]:
    """The batches again and again, each time in another order."""
    draw = random.Random(seed)
    while True:
        yield from draw.sample(batches, len(batches))
