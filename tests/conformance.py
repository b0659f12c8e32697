"""Every recipe held against its restatement: what is measured of it, and the page of all of them.

    python tests/conformance.py                              # the table, in half a minute
    python tests/conformance.py --out docs/conformance.md    # put into the page

tests/test_recipe_contract.py asserts what is measured here. A line is a recipe with the options at which
it is restated; sizes are small and lengths lie around the blocks.
"""

import argparse
import dataclasses
import functools
import itertools
import math
import re
from pathlib import Path

import numpy as np
import torch
from restatements import RESTATED, Restatement, Site
from torch import Tensor, nn

from subquad.backends import backend
from subquad.catalogue import masks
from subquad.ir import OPS, Graph, RecipeError, TensorType, building, cost, evaluate, symbol
from subquad.ir.dims import evaluate as evaluate_dim
from subquad.ir.ops.reduce import cumsum
from subquad.ir.types import bool_, f32
from subquad.learned import initial
from subquad.passes import recipe_named
from subquad.passes.masks import Mask
from subquad.passes.pipeline import difference
from subquad.passes.recipes import Mixing
from subquad.passes.recipes.recipe import HONOURED, MASKS

SIZES = {"b": 2, "h": 4, "g": 2, "d": 4, "e": 5, "c": 6}
SCALE, INDEX, COUNT = 0.4, 1, 3
BIG = (1 << 16, 1 << 20)


def site_graph(spec: str, mask: str = "none", *, n=None, b=None, m=None, grid=(), before=0, **sizes) -> Graph:
    """A recipe alone, on inputs q, k, v, the tokens if it needs them, the mask and the starts if any."""
    recipe, size = recipe_named(spec), {**SIZES, **sizes}
    n = symbol("n") if n is None else n
    b, m = symbol("b") if b is None else b, n if m is None else m
    types = {
        "q": TensorType(f32, (b, size["h"], n, size["d"])),
        "k": TensorType(f32, (b, size["g"], m, size["d"])),
        "v": TensorType(f32, (b, size["g"], m, size["e"])),
    }
    if "tokens" in recipe.needs:
        types["tokens"] = TensorType(f32, (b, n, size["c"]))
    if "padding" in mask:
        types["mask"] = TensorType(bool_, (b, 1, 1, m))
    if "packed" in mask:
        types["starts"] = TensorType(bool_, (b, n))
    with building():
        inputs = {name: OPS["input"](name=name, type=t) for name, t in types.items()}
        causal, padding = "causal" in mask, inputs.get("mask")
        segments = (cumsum(inputs["starts"], dim=1),) * 2 if "packed" in mask else None
        place = Mixing(
            SCALE, causal, padding, "layer", INDEX, COUNT, inputs.get("tokens"),
            grid if "grid" in recipe.needs else (), before,
            Mask(mask, causal=causal, padding=padding, segments=segments),
        )  # fmt: skip
        out = recipe(inputs["q"], inputs["k"], inputs["v"], place)
        return Graph("site", tuple(inputs.values()), (out,))


def weights(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """What it learns, moved a little from where it starts."""
    rng, found = np.random.default_rng(seed), {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        starts = initial(graph, {})
    for name, tensor in starts.items():
        array = tensor.detach().double().numpy()
        noise = 0.1 * rng.standard_normal(array.shape) if tensor.is_floating_point() else 0
        found[name] = array + noise
    return found


def arrays(case: Restatement, graph: Graph, n: int, mask: str, seed: int = 0) -> list[np.ndarray]:
    """Inputs; a third of the keys of the second row is padding, and padded keys hold poison.

    Where sequences are packed, one starts at every fourth token or so.
    """
    rng, size = np.random.default_rng(seed), {**SIZES, **case.sizes}
    given = [
        rng.standard_normal([evaluate_dim(d, {"n": n, "b": size["b"]}) for d in x.shape])
        for x in graph.inputs
    ]
    if "packed" in mask:
        *given, starts = given
        starts = starts > 0.7
    if "padding" in mask:
        keep = rng.random((size["b"], n)) > 0.3
        keep[0], keep[1, -1] = True, n == 1
        given[1] = np.where(keep[:, None, :, None], given[1], 1e30)
        given[2] = np.where(keep[:, None, :, None], given[2], np.nan)
        given[-1] = keep[:, None, None, :]
    return [*given, starts] if "packed" in mask else given


def restated(case: Restatement, graph: Graph, given, learned, mask, grid=(), before=0) -> np.ndarray:
    """The same by the restatement; of each sequence by itself, where several are packed in a row."""
    by_name = dict(zip((x.op.attrs["name"] for x in graph.inputs), given, strict=True))
    q, k, v = (by_name[name] for name in "qkv")
    each, keep = q.shape[1] // k.shape[1], np.ones((len(k), k.shape[2]), bool)
    if "mask" in by_name:
        keep = by_name["mask"][:, 0, 0]
        k, v = (np.where(keep[:, None, :, None], x, 0.0) for x in (k, v))
    site = Site(
        q, np.repeat(k, each, 1), np.repeat(v, each, 1), keep, "causal" in mask, SCALE,
        {name.removeprefix("layer."): x for name, x in learned.items()},
        by_name.get("tokens"), grid, before, INDEX, COUNT,
    )  # fmt: skip
    with np.errstate(all="ignore"):
        if "starts" not in by_name:
            return case.function(site, **case.options)
        rows = []
        for row, starts in enumerate(by_name["starts"]):
            ends = [0, *(np.flatnonzero(starts[1:]) + 1), len(starts)]
            parts = [only(site, row, slice(*span)) for span in itertools.pairwise(ends)]
            rows.append(np.concatenate([case.function(part, **case.options) for part in parts], axis=2))
        return np.concatenate(rows)


def only(site: Site, row: int, tokens: slice) -> Site:
    """Some tokens of one row."""
    row = slice(row, row + 1)
    q, k, v = (x[row, :, tokens] for x in (site.q, site.k, site.v))
    x = None if site.tokens is None else site.tokens[row, tokens]
    return dataclasses.replace(site, q=q, k=k, v=v, keep=site.keep[row, tokens], tokens=x)


def places(case: Restatement):
    """(n, grid, before) at which a recipe is tried."""
    if "grid" in recipe_named(case.spec).needs:
        for grid in case.grids:
            for before in case.before:
                yield math.prod(grid) + before, grid, before
    else:
        for n in case.lengths:
            yield n, (), 0


def last_place(case: Restatement) -> dict:
    """The largest place at which it is tried, as `site_graph` takes it."""
    n, grid, before = list(places(case))[-1]
    return {"n": n, "grid": grid, "before": before} if grid else {"n": n}


# ---- what is measured ----------------------------------------------------------------------------


def error(case: Restatement, mask: str) -> float:
    """The largest difference from its restatement, over the largest of its results, over all places.

    In float64, with grouped heads, poison in padded keys, and weights moved from where they start.
    """
    worst, shared = 0.0, None
    for n, grid, before in places(case):
        graph = shared
        if graph is None:
            fixed = {"n": n, "grid": grid, "before": before} if grid else {}
            graph = site_graph(case.spec, mask, **fixed, **case.sizes)
            shared = None if grid else graph
        given, learned = arrays(case, graph, n, mask), weights(graph)
        (actual,), _ = evaluate(graph, given, learned)
        expected = restated(case, graph, given, learned, mask, grid, before)
        if not np.isfinite(expected).all():
            return math.inf
        worst = max(worst, difference([expected], [actual]))
    return worst


@functools.cache
def exponent(spec: str) -> float:
    """The power of the number of tokens that FLOPs grow with, between 2^16 and 2^20 of them."""
    case, flops = RESTATED[spec], []
    for n in BIG:
        if "grid" in recipe_named(spec).needs:
            side = math.isqrt(n)
            grid = (side, side) if len(case.grids[0]) == 2 else (16, side // 4, side // 4)
            graph = site_graph(spec, n=side * side, grid=grid, b=1, **case.sizes)
        else:
            graph = site_graph(spec, b=1, **case.sizes)
        flops.append(evaluate_dim(cost(graph).flops, {"n": n}))
    return math.log(flops[1] / flops[0]) / math.log(BIG[1] / BIG[0])


def trained(case: Restatement) -> set[str]:
    """The names of the weights that it trains; what is drawn once is not among them."""
    graph = site_graph(case.spec, b=1, **last_place(case), **case.sizes)
    params = (op.attrs for op in graph.ops() if op.name == "param")
    return {attrs["name"].removeprefix("layer.") for attrs in params if not attrs.get("fixed")}


def gradients(case: Restatement) -> tuple[np.ndarray, np.ndarray, dict[str, Tensor | None]]:
    """In torch and float32: the result, the oracle's in float64, and the gradient of each trained weight."""
    place, size = last_place(case), {**SIZES, **case.sizes}
    graph = site_graph(case.spec, b=size["b"], **place, **case.sizes)
    given, learned = arrays(case, graph, place["n"], "none"), weights(graph)
    (expected,), _ = evaluate(graph, given, learned)
    kinds = graph.params
    tensors = {
        name: torch.tensor(x, dtype=torch.float32 if kinds[name].dtype.is_float else torch.int64)
        for name, x in learned.items()
    }
    for x in tensors.values():
        x.requires_grad_(x.is_floating_point())
    inputs = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in given]
    (out,), _ = backend("eager").compile(graph)(inputs, tensors)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    names = [n for n, x in initial(graph, {}).items() if isinstance(x, nn.Parameter)]
    return out.detach().numpy(), expected, {n.removeprefix("layer."): tensors[n].grad for n in names}


def refusals(case: Restatement) -> list[str | None]:
    """What it says to every mask, length and place that it does not honour; None where it says nothing."""
    recipe = recipe_named(case.spec)
    mask = min(recipe.masks)
    causal = "causal" in mask
    found = [recipe.refusal("dense", False, True, "because")]
    found += [recipe.refusal(other, "causal" in other, True, "") for other in sorted(MASKS - recipe.masks)]
    if recipe.square or causal:
        found.append(recipe.refusal(mask, causal, False, ""))
    found += [recipe.refusal(mask, causal, True, "", [it]) for it in sorted(HONOURED.keys() - recipe.honours)]
    for need in sorted(recipe.needs):
        with building():
            q = OPS["input"](name="q", type=TensorType(f32, (1, 2, 4, 4)))
            x = OPS["input"](name="x", type=TensorType(f32, (1, 4, 8)))
            there = {"grid": (2, 2), "tokens": x}
            place = Mixing(1.0, False, **{name: there[name] for name in recipe.needs - {need}})
            try:
                recipe(q, q, q, place)
                found.append(None)
            except RecipeError as refused:
                found.append(str(refused))
    return found


# ---- the page ------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "conformance.md"
COLUMNS = ("recipe", "masks", "error", "n^", "gradients", "refusals")
STEADY = ("recipe", "masks", "n^", "refusals")
"""The columns that are the same on every machine and cost little."""


def steady(spec: str) -> dict[str, str]:
    """The columns of a line that are no measurement; gradients: of how many weights."""
    case = RESTATED[spec]
    return {
        "recipe": f"`{spec}`",
        "masks": masks(recipe_named(spec)),
        "n^": f"{round(exponent(spec), 1):g}",
        "gradients": str(len(trained(case))),
        "refusals": str(len(refusals(case))),
    }


def line(spec: str) -> dict[str, str]:
    """All columns of a line; runs the recipe and its restatement."""
    case, found = RESTATED[spec], steady(spec)
    *_, grads = gradients(case)
    learn = [g for g in grads.values() if g is not None and g.isfinite().all() and g.abs().max() > 0]
    found["gradients"] = "-" if not grads else f"{len(learn)} of {found['gradients']}"
    found["error"] = f"{max(error(case, mask) for mask in recipe_named(spec).masks):.0e}"
    return found


def table() -> str:
    """Every recipe as it is restated, in the order of the names."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for spec in sorted(RESTATED):
        found = line(spec)
        rows.append(tuple(found[name] for name in COLUMNS))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def written(page: str) -> list[dict[str, str]]:
    """The lines of the table in the text of a page."""
    rows = [row[2:-2].split(" | ") for row in between(page).splitlines()]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def between(page: str, new: str | None = None) -> str:
    """The table in a page; or the page with another."""
    match = re.search(r"(?<=<!-- table: begin -->\n).*(?=<!-- table: end -->)", page, re.DOTALL)
    assert match, "a page holds its table between <!-- table: begin --> and <!-- table: end -->"
    return match[0] if new is None else page[: match.start()] + new + page[match.end() :]


def main() -> None:
    """Print the table, or put it into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="the page to put it into")
    out = parser.parse_args().out
    found = table()
    if out is None:
        print(found, end="")
    else:
        out.write_text(between(out.read_text("utf-8"), found), "utf-8")


if __name__ == "__main__":
    main()
