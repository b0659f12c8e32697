"""A model captured once, to put recipes in as often as wanted: what each does to the outputs, untrained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .api import Attention, Grid, at_sizes, captured_at, linearizing, recipes_of
from .assemble import assembled
from .frontend import OptimizedModule
from .passes import EXACT, Pipeline, canonicalize, find_sites
from .passes.sites import Site


@dataclass(frozen=True)
class Damage:
    """Of outputs [b, ..., d] against the original's. cosine, smallest: mean and smallest cosine of their
    vectors. relative: norm of the difference over the norm. same: the share of the vectors whose nearest
    neighbour among the others is the same; NaN where there are fewer than three."""

    cosine: float
    smallest: float
    relative: float
    same: float

    @staticmethod
    def of(before: Tensor, after: Tensor) -> Damage:
        """The damage of `after`, in float64."""
        before, after = (x.detach().double().flatten(0, -2) for x in (before, after))
        cosines, nearest = F.cosine_similarity(before, after), []
        for e in (F.normalize(before, dim=-1), F.normalize(after, dim=-1)):
            likeness = e @ e.mT
            nearest.append(likeness.fill_diagonal_(-2.0).argmax(1))
        same = (nearest[0] == nearest[1]).double().mean() if len(before) > 2 else torch.tensor(torch.nan)
        relative = (after - before).norm() / before.norm()
        return Damage(float(cosines.mean()), float(cosines.min()), float(relative), float(same))


class Trial:
    """A model captured and simplified once; `put` gives it with attention replaced.

    As `subquad.optimize(model, args, attention=...)` each time without its checks, and with the model's own
    weights instead of copies of them. Raises CaptureError for a model that cannot be captured.
    """

    def __init__(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *,
        dynamic_shapes: Any = None,
    ):  # fmt: skip
        self.model = model
        self.captured, _, sizes = captured_at(model, tuple(args), dict(kwargs or {}), dynamic_shapes)
        self.graph = at_sizes(EXACT, sizes).run(self.captured.graph)[0]

    def put(self, attention: Attention, grid: Grid | None = None) -> tuple[OptimizedModule, tuple[Site, ...]]:
        """The model under a recipe, or recipes by glob, and what was decided at each site, and why.

        Raises RecipeError for an unknown recipe, and for a glob or a grid that fits no site.
        """
        passes = Pipeline(linearizing(recipes_of(attention), grid), canonicalize)
        graph, steps = passes.run(self.graph)
        fast = assembled(self.model, self.captured, graph, share_weights=True)
        fast.sites = find_sites(self.graph, steps)
        return fast, fast.sites
