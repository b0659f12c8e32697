"""`optimize`: capture -> passes -> backend -> a drop-in module. The one orchestration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from .assemble import assembled
from .backends import backend as backend_named
from .frontend import Captured, LazyModule, OptimizedModule, capture
from .ir import Graph, SubquadError
from .ir.interpret import bind
from .passes import (
    EXACT,
    Pass,
    Pipeline,
    Recipe,
    canonicalize,
    find_sites,
    linearize,
    possible_gains,
    recipe_named,
)
from .report import Gain, PassLog
from .verify import Verifier

Attention = str | Recipe | Mapping[str, str | Recipe]
"""What `attention=` takes: "exact", a recipe, or recipes by glob over site paths."""

Grid = Sequence[int] | Mapping[str, Sequence[int]]
"""What `grid=` takes: the sizes of the token grid, or sizes by glob over site paths."""


def optimize(
    model: nn.Module | ExportedProgram,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    attention: Attention = "exact",
    grid: Grid | None = None,
    pipeline: Pipeline | str | None = None,
    backend: str = "auto",
    dynamic_shapes: Any = None,
    check: bool = True,
) -> OptimizedModule | LazyModule:
    """`model` as a drop-in module that computes the same with less work. The model is not changed.

    args, kwargs: example inputs; without any, the model is captured at its first call, and again where
    a later one has other sizes, which are then left open.
    attention: "exact" changes no result. A recipe's name (`subquad recipes` lists them), or a
    mapping from globs over site paths to names, replaces attention by an approximation there.
    grid: (height, width) or (frames, height, width) of the tokens, for recipes that mix over space and a
    model whose graph does not tell it; or a mapping from globs over site paths to grids.
    pipeline: passes to run instead of `subquad.EXACT`, as an object or as text,
    "canonicalize,recognize{only=rope}". Recipes of `attention` are applied after it.
    backend: "auto" (eager torch), "eager", "inductor", "mlir".
    dynamic_shapes: as torch.export takes it; True leaves every axis of every tensor open.
    check: run before and after every pass on the example inputs in float64; an exact pass that is
    off is undone, and the log names the rule.

    The result carries `log`, `graph` and `sites`. Raises CaptureError for a model that cannot be
    captured, RecipeError for an unknown recipe, BackendError for a backend that cannot run here.
    """
    options: dict[str, Any] = dict(
        pipeline=pipeline_of(pipeline, attention, grid), backend=backend, check=check
    )
    backend_named(backend_name(backend))  # a backend that is missing is known before a long capture
    if args is None and kwargs is None and not isinstance(model, ExportedProgram):
        return LazyModule(
            model,
            lambda a, k, shapes=dynamic_shapes: _optimize(model, a, k, dynamic_shapes=shapes, **options),
            opens=dynamic_shapes is None,
        )
    args = positional(args)
    return _optimize(model, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes, **options)


def _optimize(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    pipeline: Pipeline,
    backend: str,
    dynamic_shapes: Any,
    check: bool,
) -> OptimizedModule:
    captured, inputs, sizes = captured_at(model, args, kwargs, dynamic_shapes)
    verifier = Verifier(inputs, captured.tensors, captured.modules) if check else None
    graph, steps = at_sizes(pipeline, sizes).run(captured.graph, verifier)
    fast = assembled(model, captured, graph, backend=backend_name(backend))
    fast.log = PassLog(steps, gains(graph, sizes), sizes=sizes, sites=find_sites(graph, steps))
    fast.sites = fast.log.sites
    return fast


def captured_at(
    model: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> tuple[Captured, list[Tensor], dict[str, int]]:
    """`model` captured, the example inputs of its graph, and the sizes of the open dims in them.

    Raises CaptureError for a model that cannot be captured.
    """
    captured = capture(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    if isinstance(model, ExportedProgram) and not args and not kwargs:
        args, kwargs = model.example_inputs or ((), {})
    inputs = captured.signature.flatten(args, kwargs)
    return captured, inputs, bind({v: x.shape for v, x in zip(captured.graph.inputs, inputs, strict=True)})


def at_sizes(pipeline: Pipeline, sizes: Mapping[str, int]) -> Pipeline:
    """`pipeline` with the example sizes for the passes that weigh costs and were not told others."""
    weighs = {p for p in pipeline.passes if "sizes" in p.options and "sizes" not in p.given}
    passes = [p.with_(sizes=sizes) if p in weighs else p for p in pipeline.passes]
    return Pipeline(*passes, limit=pipeline.limit)


def gains(
    graph: Graph,
    sizes: Mapping[str, int],
    call: Callable[[str], str] = 'subquad.optimize(model, args, attention="{}")'.format,
) -> list[Gain]:
    """What recipes that honour a site's mask would save where attention is still exact.

    call: what the user types to get a recipe.
    """
    return [
        Gain(site.path, site.source, recipe.name, before, after, call(recipe.name), recipe.kind)
        for site, recipe, before, after in possible_gains(graph, sizes)
    ]


def pipeline_of(pipeline: Pipeline | str | None, attention: Attention, grid: Grid | None = None) -> Pipeline:
    """What runs: the passes, then what `attention` asks for. Raises RecipeError, IRError."""
    if pipeline is None:
        pipeline = EXACT
    elif isinstance(pipeline, str):
        pipeline = Pipeline.parse(pipeline)
    chosen = recipes_of(attention)
    if not chosen:
        return pipeline
    return Pipeline(pipeline, linearizing(chosen, grid), canonicalize, limit=pipeline.limit)


def linearizing(recipes: Mapping[str, Recipe], grid: Grid | None = None) -> Pass:
    """The pass that puts recipes in the places of their globs."""
    grids = grid if isinstance(grid, Mapping) else {"*": grid} if grid else {}
    sizes = {glob: "x".join(map(str, sizes)) for glob, sizes in grids.items()}
    return linearize.with_(recipes=recipes, grids=sizes)


def recipes_of(attention: Attention) -> dict[str, Recipe]:
    """`attention=` as recipes by glob, none for "exact". Raises RecipeError for an unknown one."""
    if attention == "exact":
        return {}
    recipes = attention if isinstance(attention, Mapping) else {"*": attention}
    return {glob: r if isinstance(r, Recipe) else recipe_named(r) for glob, r in recipes.items()}


def positional(args: Any) -> tuple[Any, ...]:
    """`args=` as a tuple. Raises SubquadError for what is no sequence."""
    if args is None:
        return ()
    if isinstance(args, (tuple, list)):
        return tuple(args)
    raise SubquadError(
        f"args is a {type(args).__name__}; pass the positional inputs as a tuple, "
        "optimize(model, (x,)), and keyword inputs as kwargs={...}"
    )


def backend_name(name: str) -> str:
    """The backend that `name` stands for."""
    return "eager" if name == "auto" else name
