"""`explain`: which attentions a model has and why the others are none, without compiling anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from torch import nn
from torch.export import ExportedProgram

from .api import Attention, at_sizes, captured_at, pipeline_of, positional
from .ir import Graph, SubquadError
from .passes import find_sites
from .report import PassLog
from .tables import WIDTH
from .verdicts import Sites


class Explanation:
    """What `explain` found; prints a block of text for each softmax, like layers in one.

    sites: every softmax, in the order of the graph. graph: the graph after the passes. log: of the
    passes, unchecked; `log.why(path)` asks about one place.
    """

    def __init__(self, graph: Graph, log: PassLog):
        self.graph, self.log = graph, log

    @property
    def sites(self) -> Sites:
        """Every softmax of the model."""
        return self.log.sites

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.text(options.max_width))

    def text(self, width: int = WIDTH) -> str:
        """The explanation as plain text of `width` columns."""
        return self.log.why("attention").text(width)

    def to_dict(self) -> dict[str, Any]:
        """The sites as plain data, with the counter-examples of dense masks; for json.dumps."""
        sites = [{**site.to_dict(), "counterexample": site.counterexample} for site in self.sites]
        return {"model": self.graph.name, "sizes": self.log.sizes, "sites": sites}


def explain(
    model: nn.Module | ExportedProgram,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    attention: Attention = "exact",
    dynamic_shapes: Any = None,
) -> Explanation:
    """What `optimize` makes of each softmax of `model`, and why. Captures and rewrites, compiles nothing.

    model, args, kwargs, dynamic_shapes: as for `optimize`; inputs are needed, but never computed with.
    attention: recipes to try, as for `optimize`; the explanation says where they refuse.

    Raises CaptureError for a model that cannot be captured, RecipeError for an unknown recipe.
    """
    if args is None and kwargs is None and not isinstance(model, ExportedProgram):
        raise SubquadError(
            "explain needs example inputs to capture the model with: explain(model, (x,)), and "
            "keyword inputs as kwargs={...}"
        )
    pipeline = pipeline_of(None, attention)
    captured, _, sizes = captured_at(model, positional(args), dict(kwargs or {}), dynamic_shapes)
    graph, steps = at_sizes(pipeline, sizes).run(captured.graph)
    return Explanation(graph, PassLog(steps, sizes=sizes, sites=find_sites(graph, steps)))
