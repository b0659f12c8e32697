"""Replace recognised attentions by linear-complexity recipes, where they are asked for by name.

    linearize(graph, recipes={"layers.[0-5].*": "taylor1", "*": "window(size=32)"})

The first glob that matches a site's module path decides. A site whose mask or lengths the recipe
does not honour stays as it is, and the reason is kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..ir import OPS, Cost, Dim, Graph, IRError, No, Op, RecipeError, TensorType, Value, building, cost
from ..ir import replace as replace_ops
from ..ir.attributes import attr_key
from ..ir.dims import at_least, evaluate
from ..ir.rewrite import current_journal
from ..ir.types import bool_, product
from .masks import Mask, classify_op
from .pipeline import pass_
from .recipes import RECIPES, Mixing, Recipe, recipe_named
from .sites import LINEARIZE, Site, find_sites, lies
from .tokens import grids as token_grids
from .tokens import projected


@pass_(exact=False)
def linearize(graph: Graph, *, recipes: Mapping[str, Any] = {}, grids: Mapping[str, str] = {}) -> Graph:
    """Replace attentions by recipes: {glob of module paths: recipe or its name}.

    A glob may also name one site of a path that has several: "layers.3.attn#7" is the site of index 7.
    grids: {glob: "14x14"}, the grid of the tokens where the graph does not tell it.

    Raises RecipeError for an unknown recipe and for a glob that matches no site.
    """
    chosen = {glob: recipe_named(spec) for glob, spec in recipes.items()}
    sites = find_sites(graph)
    if chosen and not sites:
        raise RecipeError("no attention was found in this model, so there is nothing for a recipe to replace")
    wanted: dict[Op, Recipe] = {}
    for glob, named in chosen.items():
        at = [site.op for i, site in enumerate(sites) if lies(site.path, i, glob)]
        if not at:
            known = ", ".join(dict.fromkeys(site.path for site in sites))
            raise RecipeError(f"no attention lies at {glob!r}; sites: {known}")
        wanted = dict.fromkeys(at, named) | wanted  # the first glob decides
    record, why = current_journal(), {site.op: site.reason for site in sites}
    where = places(graph, sites, grids)

    def make(op: Op, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        found = wanted.get(op)
        if found is None or record.spent:
            return None
        if op.name == "attention":
            result = substitute(op, inputs, found, where[op])
        else:
            result = No(f"it stays as it is: {why[op]}", op.results[0])
        record.record(f"{LINEARIZE}{found}", op, result)
        return (result,) if isinstance(result, Value) else None

    return replace_ops(graph, make, via="linearize")


@dataclass(frozen=True)
class Place:
    """Where an attention stands in its model.

    name: what names of learned weights start with, "{}" for the recipe's. index: which site it is of
    `count`. grid, before: the token grid and how many tokens stand before it, as of `Mixing`.
    """

    name: str = "{}"
    index: int = 0
    count: int = 1
    grid: tuple[Dim, ...] = ()
    before: Dim = 0


def places(graph: Graph, sites: Sequence[Site], grids: Mapping[str, str] = {}) -> dict[Op, Place]:
    """Where the attentions of a graph stand; grids as of `linearize`.

    Names are those of the modules, and do not change with what is replaced elsewhere.
    """
    laid_out, given = token_grids(graph), {glob: _grid(text) for glob, text in grids.items()}
    met: Counter[str] = Counter()
    found = {}
    for index, site in enumerate(sites):
        if site.op.name != "attention":
            continue
        start = "{}" if ":" in site.path else f"{site.path}.{{}}"  # a line is no module
        met[start] += 1
        name = start + (f"_{met[start]}" if met[start] > 1 else "")
        n = site.op.types[0].shape[2]
        told = next((g for glob, g in given.items() if fnmatchcase(site.path, glob)), None)
        grid, before = laid_out.get(n, ((), 0)) if told is None else (told, n - product(told))
        found[site.op] = Place(name, index, len(sites), grid, before)
    return found


def _grid(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", text):
        raise RecipeError(f"a grid is one to three sizes, '14x14', not {text!r}")
    return tuple(map(int, text.split("x")))


def substitute(op: Op, inputs: Sequence[Value | None], recipe: Recipe, place: Place = Place()) -> Value | No:
    """The recipe in the place of an `attention` op on new inputs, or why not.

    Raises RecipeError where the tokens do not fit on the grid that was given.
    """
    q, k, v = inputs[:3]
    if q is None or k is None or v is None:
        return No("an operand is missing", op.results[0])
    if not isinstance(place.before, int) or place.before < 0:
        path, grid = op.source.split(" (")[0], place.grid
        raise RecipeError(f"{path!r} has {q.shape[2]} tokens, which a grid of {grid} cannot hold")
    if not (isinstance(q.shape[3], int) and isinstance(v.shape[3], int)):
        return No("the features of a head are an open size", op.results[0])
    new = OPS["attention"](*inputs, **op.attrs).op
    mask, sink, softcap = classify_op(new), (*new.inputs, None, None)[4], op.attrs["softcap"]
    past = mask.causal and q.shape[2] + mask.offset == k.shape[2] and at_least(mask.offset, 1)
    does = {"softcap": softcap is not None, "sink": sink is not None, "past": past}
    does["offset"] = mask.offset != 0 and not past
    square, which = q.shape[2] == k.shape[2], [name for name in does if does[name]]
    refusal = recipe.refusal(mask.kind, mask.causal, square, mask.reason, which)
    if refusal is not None:
        return No(refusal, op.results[0])
    try:
        tokens = projected(q, k, v) if "tokens" in recipe.needs else None
        q, scale = (-q, -op.attrs["scale"]) if op.attrs["scale"] < 0 else (q, op.attrs["scale"])
        site = Mixing(
            scale, mask.causal, mask.padding, place.name.replace("{}", recipe.name), place.index, place.count,
            tokens=tokens, grid=place.grid, before=place.before, mask=mask, softcap=softcap, sink=sink,
        )  # fmt: skip
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
