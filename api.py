"""`optimize`: capture -> passes -> backend -> a drop-in module. The one orchestration."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from .assemble import assembled
from .auto import Ask, by_length, planned
from .backends import backend as backend_named
from .budget import Budget
from .calibration import Batch, Calibration
from .frontend import Captured, LazyModule, OptimizedModule, capture
from .frontend.versions import Guard
from .ir import Graph, PlanError, SubquadError
from .ir.interpret import bind
from .machine import Machine
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
from .plan import Plan
from .report import Gain, PassLog
from .tables import working
from .verify import Verifier

Attention = str | Recipe | Mapping[str, str | Recipe]
"""What `attention=` takes: "exact", a recipe, or recipes by glob over site paths; `optimize` also takes
"auto" and a plan."""

Grid = Sequence[int] | Mapping[str, Sequence[int]]
"""What `grid=` takes: the sizes of the token grid, or sizes by glob over site paths."""


def optimize(
    model: nn.Module | ExportedProgram,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    attention: Attention | Plan = "exact",
    budget: Budget | None = None,
    calibration: Calibration | Iterable[Any] | None = None,
    lengths: Sequence[int] | None = None,
    machine: Machine | str | None = None,
    grid: Grid | None = None,
    pipeline: Pipeline | str | None = None,
    backend: str = "auto",
    dynamic_shapes: Any = None,
    check: bool = True,
    progress: Callable[[str], None] | bool = False,
) -> OptimizedModule | LazyModule:
    """`model` as a drop-in module that computes the same with less work. The model is not changed.

    args, kwargs: example inputs; without any, the model is captured at its first call, and again where
    a later one has other sizes, which are then left open.
    attention: "exact" changes no result. A recipe's name (`subquad recipes` lists them), or a
    mapping from globs over site paths to names, replaces attention by an approximation there. "auto"
    chooses by site within `budget`; a `Plan` is a choice made before.
    budget: what must hold of the result, for "auto". calibration: batches of inputs, or a `Calibration`, to
    fit what recipes learn and to measure what they do; without them "auto" tries what needs no fitting,
    on the example inputs. lengths: tokens that times count at, for "auto"; machine: a `Machine` or the name
    of one to plan for ("h100"), this one if None. The result then also carries `plan`.
    grid: (height, width) or (frames, height, width) of the tokens, for recipes that mix over space and a
    model whose graph does not tell it; or a mapping from globs over site paths to grids.
    pipeline: passes to run instead of `subquad.EXACT`, as an object or as text,
    "canonicalize,recognize{only=rope}". Recipes of `attention` are applied after it.
    backend: "auto" (eager torch), "eager", "inductor", "mlir".
    dynamic_shapes: as torch.export takes it; True leaves every axis of every tensor open.
    check: run before and after every pass on the example inputs in float64; an exact pass that is
    off is undone, and the log names the rule.
    progress: True shows what a long search does on stderr; a function is called with it.

    The result carries `log`, `graph` and `sites`. Raises CaptureError for a model that cannot be
    captured, RecipeError for an unknown recipe, BackendError for a backend that cannot run here,
    CalibrationError for batches and PlanError for a budget or lengths that cannot be used.
    """
    options: dict[str, Any] = dict(grid=grid, backend=backend, check=check)
    ask = _ask(attention, budget, calibration, lengths, machine, grid)
    if ask is None and not isinstance(attention, Plan):
        options |= dict(pipeline=pipeline_of(pipeline, attention, grid))
    else:
        options |= dict(pipeline=pipeline_of(pipeline, "exact"), plan=ask or attention, progress=progress)
    backend_named(backend_name(backend))  # a backend that is missing is known before a long capture
    if args is None and kwargs is None and not isinstance(model, ExportedProgram):
        return LazyModule(
            model,
            lambda a, k, shapes=dynamic_shapes: _optimize(model, a, k, dynamic_shapes=shapes, **options),
            opens=dynamic_shapes is None,
        )
    args = positional(args)
    return _optimize(model, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes, **options)


def _ask(
    attention: Attention | Plan,
    budget: Budget | None,
    calibration: Calibration | Iterable[Any] | None,
    lengths: Sequence[int] | None,
    machine: Machine | str | None,
    grid: Grid | None,
) -> Ask | None:
    """What a plan is asked for, None where none is. Raises PlanError for what does not go together."""
    auto = isinstance(attention, str) and attention == "auto"
    given = {"budget": budget, "calibration": calibration, "lengths": lengths, "machine": machine}
    stray = [name for name, value in given.items() if value is not None and name != "calibration"]
    if auto and budget is None:
        raise PlanError(
            'attention="auto" chooses within a budget; say what must hold, such as '
            "budget=subquad.Budget(cosine=0.99)"
        )
    if not auto and stray:
        raise PlanError(f'{stray[0]}= is for attention="auto", and attention is {attention!r}')
    if not auto and calibration is None:
        return None
    if isinstance(attention, Plan) or (not auto and not (named := recipes_of(attention))):
        raise PlanError(f'calibration= is for recipes, by name or "auto", and attention is {attention!r}')
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = Calibration(calibration)
    recipes = None if auto else named
    return Ask(recipes, budget, calibration, lengths, machine, grids_of(grid))


def _optimize(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    pipeline: Pipeline,
    grid: Grid | None,
    backend: str,
    dynamic_shapes: Any,
    check: bool,
    plan: Plan | Ask | None = None,
    progress: Callable[[str], None] | bool = False,
) -> OptimizedModule:
    captured, inputs, sizes = captured_at(model, args, kwargs, dynamic_shapes)
    verifier = Verifier(inputs, captured.tensors, captured.modules) if check else None
    graph, steps = at_sizes(pipeline, sizes).run(captured.graph, verifier)
    versions: list[tuple[Guard, Graph]] = []
    weights: dict[str, Tensor] = {}
    if isinstance(plan, Ask):
        with saying(progress) as say:
            plan = planned(plan, model, captured, graph, Batch(args, kwargs, tuple(inputs)), sizes, say)
    if plan is not None:
        if verifier is not None:
            verifier.give(plan.tensors)
        exact, more = graph, steps[:0]
        for guard, recipes in by_length(plan, exact, sizes):
            passes = Pipeline(linearizing(recipes_of(recipes), grid), canonicalize)
            version, more = passes.run(exact, verifier) if recipes else (exact, more)
            if guard is None:
                graph = version
            else:
                versions.append((guard, version))
        steps = (*steps, *more)
        read = {name for version in (graph, *(v for _, v in versions)) for name in version.params}
        weights = {name: x for name, x in plan.tensors.items() if name in read}
    name = backend_name(backend)
    fast = assembled(model, captured, graph, backend=name, weights=weights, versions=versions)
    fast.log = PassLog(steps, gains(fast.graph, sizes), sizes=sizes, sites=find_sites(fast.graph, steps))
    fast.sites, fast.plan = fast.log.sites, plan
    return fast


@contextlib.contextmanager
def saying(progress: Callable[[str], None] | bool) -> Iterator[Callable[[str], None]]:
    """`progress=` as a function."""
    if callable(progress):
        yield progress
    elif progress:
        with working() as say:
            yield say
    else:
        yield lambda text: None


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
    return linearize.with_(recipes=recipes, grids=grids_of(grid))


def grids_of(grid: Grid | None) -> dict[str, str]:
    """`grid=` as `linearize` takes it."""
    grids = grid if isinstance(grid, Mapping) else {"*": grid} if grid else {}
    return {glob: "x".join(map(str, sizes)) for glob, sizes in grids.items()}


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
