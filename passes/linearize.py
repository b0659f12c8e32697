"""Replace recognised attentions by linear-complexity recipes, where they are asked for by name.

    linearize(graph, recipes={"layers.[0-5].*": "taylor1", "*": "window(size=32)"})

The first glob that matches a site's module path decides. A site whose mask or lengths the recipe
does not honour stays as it is, and the reason is kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ..ir import OPS, Cost, Graph, IRError, No, Op, RecipeError, TensorType, Value, building, cost
from ..ir import replace as replace_ops
from ..ir.attributes import attr_key
from ..ir.dims import evaluate
from ..ir.rewrite import current_journal
from ..ir.types import bool_, product
from .masks import Mask, classify_op
from .pipeline import pass_
from .recipes import RECIPES, Mixing, Recipe, recipe_named
from .sites import LINEARIZE, Site, find_sites
from .tokens import grids as token_grids
from .tokens import projected


@pass_(exact=False)
def linearize(graph: Graph, *, recipes: Mapping[str, Any] = {}, grids: Mapping[str, str] = {}) -> Graph:
    """Replace attentions by recipes: {glob of module paths: recipe or its name}.

    grids: {glob: "14x14"}, the grid of the tokens where the graph does not tell it.

    Raises RecipeError for an unknown recipe and for a glob that matches no site.
    """
    chosen = {glob: recipe_named(spec) for glob, spec in recipes.items()}
    sites = find_sites(graph)
    paths, why = {site.op: site.path for site in sites}, {site.op: site.reason for site in sites}
    if chosen and not paths:
        raise RecipeError("no attention was found in this model, so there is nothing for a recipe to replace")
    for glob in chosen:
        if not any(fnmatchcase(path, glob) for path in paths.values()):
            known = ", ".join(dict.fromkeys(paths.values())) or "none"
            raise RecipeError(f"no attention lies at {glob!r}; sites: {known}")
    record = current_journal()
    laid_out, given = token_grids(graph), {glob: _grid(text) for glob, text in grids.items()}
    order = {op: i for i, op in enumerate(paths)}
    names: Counter[str] = Counter()

    def make(op: Op, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if op not in paths or record.spent:
            return None
        path = paths[op]
        found = next((r for g, r in chosen.items() if fnmatchcase(path, g)), None)
        if found is None:
            return None
        if op.name == "attention":
            name = found.name if ":" in path else f"{path}.{found.name}"  # a line is no module
            names[name] += 1
            name += f"_{names[name]}" if names[name] > 1 else ""
            told = next((g for glob, g in given.items() if fnmatchcase(path, glob)), None)
            n = op.types[0].shape[2]
            grid, before = laid_out.get(n, ((), 0)) if told is None else (told, n - product(told))
            if not isinstance(before, int) or before < 0:
                raise RecipeError(f"{path!r} has {n} tokens, which a grid of {told} cannot hold")
            where = dict(name=name, index=order[op], count=len(order), grid=grid, before=before)
            result = substitute(op, inputs, found, **where)
        else:
            result = No(f"it stays as it is: {why[op]}", op.results[0])
        record.record(f"{LINEARIZE}{found}", op, result)
        return (result,) if isinstance(result, Value) else None

    return replace_ops(graph, make, via="linearize")


def _grid(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", text):
        raise RecipeError(f"a grid is one to three sizes, '14x14', not {text!r}")
    return tuple(map(int, text.split("x")))


def substitute(op: Op, inputs: Sequence[Value | None], recipe: Recipe, **where: Any) -> Value | No:
    """The recipe in the place of an `attention` op on new inputs, or why not.

    where: what is known of the place: name, index, count, grid and before of `Mixing`.
    """
    q, k, v = inputs[:3]
    if q is None or k is None or v is None:
        return No("an operand is missing", op.results[0])
    if not (isinstance(q.shape[3], int) and isinstance(v.shape[3], int)):
        return No("the features of a head are an open size", op.results[0])
    new = OPS["attention"](*inputs, **op.attrs).op
    mask, sink, softcap = classify_op(new), (*new.inputs, None, None)[4], op.attrs["softcap"]
    does = {"softcap": softcap is not None, "sink": sink is not None, "offset": mask.offset != 0}
    square, which = q.shape[2] == k.shape[2], [name for name in does if does[name]]
    refusal = recipe.refusal(mask.kind, mask.causal, square, mask.reason, which)
    if refusal is not None:
        return No(refusal, op.results[0])
    try:
        tokens = projected(q, k, v) if "tokens" in recipe.needs else None
        proved = dict(mask=mask, softcap=softcap, sink=sink)
        q, scale = (-q, -op.attrs["scale"]) if op.attrs["scale"] < 0 else (q, op.attrs["scale"])
        site = Mixing(scale, mask.causal, mask.padding, tokens=tokens, **proved, **where)
        result = recipe(q, k, v, site)
    except (RecipeError, IRError) as error:
        return No(f"{recipe} does not fit: {error}", op.results[0])
    if result.type != op.types[0]:
        return No(f"{recipe} gives {result.type}, not {op.types[0]}", op.results[0])
    return result


def compare_costs(op: Op, recipe: Recipe, mask: Mask | None = None) -> tuple[Cost, Cost] | No:
    """The cost of an `attention` op as it is and under a recipe, symbolic in the dims."""
    mask = mask or classify_op(op)
    if not mask.parts <= {"causal", "window", "padding"}:
        refusal = recipe.refusal(mask.kind, mask.causal, True, mask.reason)
        return No(refusal or f"the cost of {recipe} at a {mask.kind} mask is not known", op.results[0])
    with building():
        q, k, v, _, sink = (None if x is None else x.type for x in (*op.inputs, None, None)[:5])
        padding = None if mask.padding is None else TensorType(bool_, (k.shape[0], 1, 1, k.shape[2]))  # type: ignore[union-attr]
        types = {"q": q, "k": k, "v": v, "mask": padding, "sink": sink}
        given = {name: None if t is None else OPS["input"](name=name, type=t) for name, t in types.items()}
        attrs = {**op.attrs, "causal": mask.causal, "offset": mask.offset, "window": mask.window}
        new = OPS["attention"](*given.values(), **attrs).op
        inputs = [x for x in given.values() if x is not None]
        result = substitute(new, new.inputs, recipe)
        if isinstance(result, No):
            return result
        return cost(op), cost(Graph("site", inputs, (result,)))


def possible_gains(graph: Graph, sizes: Mapping[str, int]) -> Iterator[tuple[Site, Recipe, Cost, Cost]]:
    """Sites and recipes that honour their mask and save FLOPs at these sizes of the symbolic dims.

    Yields the site, the recipe, and the cost before and after, symbolic. Left out are recipes that read
    more of a site than its queries, keys and values: what they cost depends on it. Sites of equal
    operands and masks are one question.
    """
    asked: dict[Any, list[tuple[Recipe, Cost, Cost]]] = {}
    for site in find_sites(graph):
        if site.op.name != "attention":
            continue
        op, mask = site.op, classify_op(site.op)
        alike = (tuple(x and x.type for x in op.inputs), attr_key(op.attrs), mask.kind)
        if alike not in asked:
            asked[alike] = [
                (recipe, *found)
                for recipe in RECIPES.values()
                if not recipe.needs and not isinstance(found := compare_costs(op, recipe, mask), No)
            ]
        for recipe, before, after in asked[alike]:
            if evaluate(after.flops, sizes) < evaluate(before.flops, sizes):
                yield site, recipe, before, after
