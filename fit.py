"""The weights that recipes add, fitted on the user's batches: layer by layer, then end to end.

    fitted = fit_layers(captured, graph, [(0, recipe_named("hedgehog")), ...], batches.fit)
    fast = assembled(model, captured, linearised, weights=fitted.weights)

Layer by layer, every site learns by itself to give what attention gives on the original model's own
queries, keys and values. A part of the batches is held out and judges: what is handed back is never worse
there than what it started from. Equal seeds give equal weights, but for rounding, where the steps run out
before the seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .calibration import Batch
from .closed import observe
from .descent import Progress, Run, descend, parted, size
from .frontend import Captured
from .ir import CalibrationError, Graph
from .passes import Recipe
from .passes.recipes.observed import CLOSED, Observed, starts
from .taps import Taps


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
    rate: float = 0.1,
    grids: Mapping[str, str] = {},
    closed: bool = True,
    start: Mapping[str, Tensor] = {},
    progress: Progress | None = None,
) -> Fitted:
    """Fit each recipe at its site to attention's output there, by Adam on the relative squared error.

    graph: the captured model, simplified; chosen: (index in `find_sites(graph)`, recipe), a site may be
    named with several. Positions of one site are fitted one after another, those of different sites
    together, in shares of `seconds` and with `steps` each. rate: the first step, as a share of the size that
    a recipe starts a weight at.
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
    train, held = parted(batches, seed)
    seen = _seen(captured, graph, chosen, train, seed) if closed else {}
    rounds = _rounds(chosen)
    for number, positions in enumerate(rounds):
        taps = Taps(captured, graph, [chosen[at] for at in positions], grids)
        refused |= {positions[i]: reason for i, reason in taps.refused.items()}
        left = sum(map(len, rounds[number:]))
        share = (seconds - (time.perf_counter() - began)) * len(positions) / left
        run = _Layers(taps, len(positions), start)
        if not run.names:
            continue
        run.look(held)
        for i in run.names:
            site, recipe = chosen[positions[i]]
            run.to(i, _shaped(run.now(i), starts(recipe, seen[site]) if site in seen else {}))
        run.look(held)
        title = ", ".join(dict.fromkeys(str(chosen[at][1]) for at in positions))
        taken += descend(
            run, train, held, seed=seed, seconds=share, steps=steps, rate=rate,
            progress=partial(_said, say, title),
        )  # fmt: skip
        for i in run.names:
            position = positions[i]
            at[position] = run.best[i]
            before[position], after[position] = (math.sqrt(x) for x in (run.first[i], run.least[i]))
    return Fitted(tuple(at), tuple(before), tuple(after), refused, taken, time.perf_counter() - began)


def _seen(
    captured: Captured,
    graph: Graph,
    chosen: Sequence[tuple[int, Recipe]],
    batches: Sequence[Batch],
    seed: int,
) -> dict[int, Observed]:
    """What attention does at the sites of which a closed form wants to know it."""
    indices = sorted({index for index, recipe in chosen if recipe.name in CLOSED})
    return observe(captured, graph, indices, batches, seed=seed) if indices else {}


def _shaped(weights: Mapping[str, Tensor], found: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Weights, those that a closed form found in the place of others."""
    made = dict(weights)
    for name, x in weights.items():
        array = found.get(name.rpartition(".")[2])
        if array is not None:
            made[name] = torch.as_tensor(array).to(x).expand_as(x).clone()
    return made


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


class _Layers(Run):
    """One group for each position of the taps that learns something."""

    def __init__(self, taps: Taps, count: int, start: Mapping[str, Tensor]):
        weights = taps.learned | {n: x for n, x in start.items() if n in taps.learned}
        names = {at: taps.names(at) for at in range(count) if at not in taps.refused}
        trains = {at: [n for n in found if taps.learned[n].requires_grad] for at, found in names.items()}
        sizes = {n: size(x) for n, x in taps.learned.items()}
        super().__init__({at: found for at, found in trains.items() if found}, weights, sizes)
        self._taps = taps

    def losses(self, batch: Batch) -> dict[int, tuple[Tensor, Tensor]]:
        found = self._taps(batch.inputs, self.live)
        return {group: found[group].squares() for group in self.names}
