"""`torch.compile(model, backend="subquad")`: each graph that Dynamo finds goes through the passes.

    fast = torch.compile(model, backend="subquad", options={"attention": "elu1"})
    fast(x)
    print(subquad.dynamo.graphs[-1].log)

`TORCH_LOGS="+subquad"` prints every log as it is made, and `TORCH_TRACE=folder` keeps them for tlparse.
The compiled graphs use the model's live parameters, and autograd runs through them.
"""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import SymInt, Tensor, fx, nn
from torch._guards import CompileContext
from torch._logging import trace_structured
from torch._subclasses.fake_tensor import FakeTensor

from .api import at_sizes, backend_name, gains, linearizing, pipeline_of, recipes_of
from .backends import backend as backend_named
from .backends.eager import Inductor
from .frontend.dynamo import Traced, trace
from .ir import CaptureError, Graph, RecipeError, SubquadError
from .learned import initial
from .passes import Pipeline, canonicalize, find_sites
from .passes.options import suggest
from .report import PassLog
from .verdicts import Sites
from .verify import Verifier

log = logging.getLogger("subquad.dynamo")

OPTIONS = {"attention": "exact", "grid": None, "backend": "auto", "pipeline": None, "check": False}
"""What `options=` takes, and what stands where nothing is given."""

MODES = ("reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""What `mode=` takes beside "default": each runs the graphs by Inductor, in that mode."""


@dataclass
class CompiledGraph:
    """One graph that `torch.compile(backend="subquad")` met.

    id: Dynamo's name of it, "0/1" for the second graph compiled of frame 0. log, graph: as on what
    `subquad.optimize` returns. refused: why the graph runs as it was instead; "" where it does not.
    """

    id: str
    log: PassLog | None = None
    graph: Graph | None = None
    refused: str = ""

    @property
    def sites(self) -> Sites:
        """Every softmax of the graph, as on what `subquad.optimize` returns."""
        return Sites() if self.log is None else self.log.sites

    def __str__(self) -> str:
        return f"graph {self.id}" + (f" runs as it was: {self.refused}" if self.refused else f"\n{self.log}")


graphs: deque[CompiledGraph] = deque(maxlen=256)
"""The graphs compiled since `torch._dynamo.reset()`, the last 256 of them, oldest first."""


def compile_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The backend: `gm` as a function of the same arguments that does less work.

    options: `attention`, `grid`, `backend`, `pipeline` and `check`, as `subquad.optimize` takes them;
    check is off unless asked for, because compiling happens in the middle of the user's own run, once a
    graph and again for each recompilation. mode: one of MODES. A graph that cannot be captured is
    returned as it was, with a warning that says why. Raises SubquadError for an unknown option or mode,
    and what `optimize` raises for values that do not exist.
    """
    settings = chosen(options, mode)
    record = CompiledGraph(str(CompileContext.current_compile_id() or len(graphs)))
    try:
        compiled = _compiled(gm, example_inputs, record, **settings)
    except CaptureError as error:
        record.refused = str(error)
        _warn(record.id, str(error))
        compiled = gm.forward
    graphs.append(record)
    _tell(record)
    return compiled


compile_graph.reset = graphs.clear  # type: ignore[attr-defined]  # torch._dynamo.reset() calls it


def _compiled(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    record: CompiledGraph,
    *,
    attention: Any,
    grid: Any,
    pipeline: Pipeline,
    backend: Any,
    check: bool,
) -> Callable[..., Any]:
    """`gm` through the passes; `record` tells what they did. Raises CaptureError."""
    traced = trace(gm, f"graph{record.id.replace('/', '_')}")
    verifier = _verifier(traced, example_inputs) if check else None
    graph, steps = at_sizes(pipeline, traced.hints).run(traced.graph, verifier)
    recipes = _fitting(attention, graph, record.id)
    if recipes:
        left = pipeline.limit
        left = left if left is None else left - sum(sum(s.applied.values()) for s in steps if not s.undone)
        more = Pipeline(linearizing(recipes, grid), canonicalize, limit=left)
        graph, then = more.run(graph, verifier)
        steps += then
    record.graph = graph
    call = 'options={{"attention": "{}"}}'.format
    record.log = PassLog(
        steps, gains(graph, traced.hints, call), sizes=traced.hints, sites=find_sites(graph, steps)
    )
    traced = replace(traced, params={**traced.params, **_drawn(graph, traced, example_inputs)})
    if isinstance(backend, Inductor):
        with torch._C._DisableAutocast():  # its casts are in the graph already
            run = backend.compile_for_dynamo(graph, traced.modules, *traced.stand_ins())
    else:
        run = backend.compile(graph, traced.modules)
    return traced.runner(run, gm.forward, lambda reason: _warn(record.id, reason))


def _fitting(attention: Any, graph: Graph, id: str) -> dict[str, Any]:
    """The recipes for sites that this graph has: a model may be cut into several graphs."""
    recipes, paths = recipes_of(attention), [site.path for site in find_sites(graph)]
    fitting = {g: r for g, r in recipes.items() if any(fnmatchcase(path, g) for path in paths)}
    if recipes and paths and not fitting:
        log.warning("graph %s: no attention lies at %s; sites: %s", id, ", ".join(recipes), ", ".join(paths))
    return fitting


def _drawn(graph: Graph, traced: Traced, example_inputs: Sequence[Any]) -> dict[str, Tensor]:
    """What recipes draw once. Raises RecipeError for weights that train: nobody would own them."""
    if graph.params.keys() <= traced.params.keys():
        return {}
    made = initial(graph, traced.arguments(_numbers(example_inputs))[1])
    trained = ", ".join(name for name, tensor in made.items() if isinstance(tensor, nn.Parameter))
    if trained:
        raise RecipeError(
            f"the recipe learns {trained}, and torch.compile has no module to keep new weights in; use "
            "subquad.optimize(model, args, attention=...), whose result has them as parameters"
        )
    return made


def _verifier(traced: Traced, example_inputs: Sequence[Any]) -> Verifier:
    if any(isinstance(x, FakeTensor) for x in example_inputs):
        raise CaptureError("check=True runs the graph on real tensors, and Dynamo gave none: leave it out")
    return Verifier(*traced.arguments(_numbers(example_inputs)), traced.modules)


def _numbers(example_inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments with plain integers for symbolic ones."""
    return tuple(x.node.hint if isinstance(x, SymInt) else x for x in example_inputs)


def chosen(options: Mapping[str, Any] | None, mode: str | None) -> dict[str, Any]:
    """The settings that options and mode come to. Raises SubquadError for what does not exist."""
    given = {**OPTIONS, **(options or {})}
    for name in given:
        if name not in OPTIONS:
            raise SubquadError(f"subquad has no option {name!r}{suggest(name, OPTIONS)}")
    if mode not in (None, "default", *MODES):
        raise SubquadError(f"subquad has no mode {mode!r}{suggest(str(mode), ('default', *MODES))}")
    recipes_of(given["attention"])  # an unknown recipe is known before anything is captured
    given["pipeline"] = pipeline_of(given["pipeline"], "exact")
    if mode in MODES:
        if given["backend"] not in ("auto", "inductor"):
            raise SubquadError(
                f"mode={mode!r} is one of Inductor's, and the backend is {given['backend']!r}; leave "
                "one of the two out"
            )
        backend_named("inductor")  # raises where it cannot run
        given["backend"] = Inductor(mode)
    else:
        given["backend"] = backend_named(backend_name(given["backend"]))
    return given


def _warn(id: str, reason: str) -> None:
    warnings.warn(f"subquad runs graph {id} of torch.compile as it was: {reason}", stacklevel=3)


def _tell(record: CompiledGraph) -> None:
    """To the logger, and to TORCH_TRACE, where tlparse shows it beside Dynamo's own."""
    log.info("%s", record)
    if record.graph is not None:
        log.debug("%s", record.graph)
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": "subquad_log", "encoding": "string"},
        payload_fn=lambda: str(record),
    )
