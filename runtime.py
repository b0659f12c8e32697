"""How long a graph takes on a machine, predicted; and from how many tokens on a recipe is faster there.

    seconds(graph, {"n": 4096}, this_machine())
    seconds(graph, {"n": 4096}, machine_named("h100"), dtype="bf16", phase="decode")
    crossover(site.op, "elu1", this_machine())

Prefill is the whole sequence at once. Decode is one more token of a sequence so long: attention reads all
keys and values, a recurrence its state, everything else is done for one token.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from .ir import (
    OPS,
    Dim,
    Graph,
    IRError,
    No,
    Op,
    RecipeError,
    SubquadError,
    TensorType,
    Value,
    building,
    symbol,
)
from .ir.dims import Poly, symbols
from .ir.types import bool_
from .machine import Machine, between, identity, keep, recall
from .passes.linearize import Place, substitute
from .passes.masks import Mask, classify_op
from .passes.recipes import Mixing, Recipe, recipe_named
from .passes.tokens import projected
from .roofline import Priced, Roofline, alone, legal
from .serving import Idealised

PHASES = ("prefill", "decode")
MOST = 1 << 20
"""The most tokens that a crossover is looked for at."""
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
"""Tokens at which it is measured."""
PATIENCE = 0.3
"""Seconds of one call from which on no longer one is measured."""
Clock = Callable[[Graph, int], float]
"""Seconds of a graph with "n" as large."""


# ---- a graph on a machine ------------------------------------------------------------------------


def seconds(
    item: Op | Graph, sizes: Mapping[str, int], machine: Machine, *, dtype: str | None = None,
    phase: str = "prefill", tokens: str | None = None,
) -> float:  # fmt: skip
    """Predicted seconds of an op or a graph, run op by op as the eager backend does.

    sizes: a number for each symbolic dim. dtype: computed in instead of f32, such as "bf16". phase:
    "prefill" or "decode". tokens: the symbol that counts them, for decoding; the only one where None.
    Raises IRError for a symbol without a size and for what cannot be decoded token by token.
    """
    return sum(part.seconds for part in parts(item, sizes, machine, dtype=dtype, phase=phase, tokens=tokens))


def parts(
    item: Op | Graph, sizes: Mapping[str, int], machine: Machine, *, dtype: str | None = None,
    phase: str = "prefill", tokens: str | None = None,
) -> list[Priced]:  # fmt: skip
    """The kernels of an op or a graph in order, each with its predicted seconds; as `seconds`."""
    if phase not in PHASES:
        raise SubquadError(f"phase={phase!r}: it is one of {', '.join(PHASES)}")
    graph = item if isinstance(item, Graph) else alone(item)
    needed = set(symbols(d for op in graph.ops() for type in op.types for d in type.shape))
    if not needed <= set(sizes):
        missing = ", ".join(sorted(needed - set(sizes)))
        raise IRError(
            f"{graph.name} was given sizes of {', '.join(sizes) or 'nothing'}, but not of {missing}"
        )
    if phase == "prefill":
        return list(Roofline(machine, sizes, dtype).graph(legal(graph)))
    name = tokens or (next(iter(needed)) if len(needed) == 1 else None)
    if name not in needed:
        given = f"tokens={tokens!r}" if tokens else f"{len(needed)} open sizes"
        raise IRError(
            f"{graph.name} with {given} cannot be decoded: name the open size that counts its tokens"
        )
    return list(Roofline(machine, {**sizes, name: 1}, dtype, context=sizes[name]).graph(graph))


def idealised(
    graph: Graph, prompts: Sequence[int], machine: Machine, *, tokens: str = "n", dtype: str | None = None,
    sizes: Mapping[str, int] = {},
) -> Idealised:  # fmt: skip
    """F(p) and g of generating with a causal graph, g at the longest prompt; see `serving.Idealised`."""
    first = {p: seconds(graph, {**sizes, tokens: p}, machine, dtype=dtype) for p in prompts}
    last = {**sizes, tokens: max(prompts)}
    return Idealised(first, seconds(graph, last, machine, dtype=dtype, phase="decode", tokens=tokens))


# ---- a site, exact and under a recipe ------------------------------------------------------------


def site(op: Op, recipe: Recipe | str | None, n: Dim, *, grid: Sequence[int] = (), index: int = 0,
         count: int = 1) -> Graph | No:  # fmt: skip
    """An `attention` op as a graph of its own with n tokens: as it is where recipe is None, else under it.

    Its inputs are q, k, v, then the padding and the tokens where they are read. grid: the sizes of the grid
    that n tokens lie on. A causal mask or window goes on at any length; another mask is refused.
    """
    mask = classify_op(op)
    if not mask.parts <= {"causal", "window", "padding"}:
        return No(f"how a {mask.kind} mask goes on at other lengths is not known", op.results[0])
    q, k, v, _, sink = (*op.args, None, None)[:5]
    square = q.shape[2] == k.shape[2]
    m: Dim = n if square else k.shape[2]
    types = {"q": _resized(q.type, n), "k": _resized(k.type, m), "v": _resized(v.type, m)}
    if mask.padding is not None:
        types["mask"] = TensorType(bool_, (types["k"].shape[0], 1, 1, m))
    found = projected(q, k, v) if recipe is not None else None
    with building():
        given = {name: OPS["input"](name=name, type=type) for name, type in types.items()}
        inputs = [given.get(name) for name in ("q", "k", "v", "mask")]
        if sink is not None:
            inputs.append(OPS["input"](name="sink", type=sink.type))
        offset = mask.offset if square and (mask.causal or mask.window is not None) else 0
        attrs = {**op.attrs, "causal": mask.causal, "offset": offset, "window": mask.window}
        new = OPS["attention"](*inputs, **attrs)
        reads = [x for x in inputs if x is not None]
        if recipe is None:
            return Graph("exact", reads, (new,))
        recipe = recipe_named(recipe)
        place = Place(index=index, count=count, grid=tuple(grid))
        if "tokens" not in recipe.needs:
            result = substitute(new.op, new.op.inputs, recipe, place)
        else:
            width = found.shape[2] if found is not None else q.shape[1] * q.shape[3]
            x = OPS["input"](name="x", type=TensorType(q.dtype, (types["q"].shape[0], n, width)))
            result = _reading(new, recipe, x, mask, place)
            reads.append(x)
        return result if isinstance(result, No) else Graph("site", reads, (result,))


def _resized(type: TensorType, n: Dim) -> TensorType:
    """A type [b, h, n, d] at one sequence for an open batch, and n tokens."""
    b, h, _, d = type.shape
    return type.with_(shape=(1 if isinstance(b, Poly) else b, h, n, d))


def _reading(new: Value, recipe: Recipe, x: Value, mask: Mask, place: Place) -> Value | No:
    """A recipe that reads the tokens that q, k and v were projected from."""
    q, k, v, padding, _ = (*new.op.args, None, None)[:5]
    refusal = recipe.refusal(mask.kind, mask.causal, q.shape[2] == k.shape[2], mask.reason)
    if refusal is not None:
        return No(refusal, new)
    scale = new.op.attrs["scale"]
    try:
        where = Mixing(
            scale, mask.causal, padding, index=place.index, count=place.count, tokens=x, grid=place.grid,
            mask=replace(mask, padding=padding),
        )  # fmt: skip
        return recipe(q, k, v, where)
    except (RecipeError, IRError) as error:
        return No(f"{recipe} does not fit: {error}", new)


class Site:
    """The graphs of one `attention` op by tokens and recipe: built once with their number open where
    that goes. A grid is as nearly a square as there is, or four frames of such where a recipe wants frames.
    """

    def __init__(self, op: Op):
        self.op = op
        self.graphs: dict[tuple[Recipe | None, int | None], Graph | No] = {}

    def graph(self, recipe: Recipe | None, n: int) -> Graph | No:
        """The graph at n tokens, symbolic in "n" or not."""
        on_grid = recipe is not None and "grid" in recipe.needs
        if (recipe, None) not in self.graphs and not on_grid:
            self.graphs[recipe, None] = site(self.op, recipe, symbol("n"))
        found = self.graphs.get((recipe, None))
        if isinstance(found, Graph):
            return found
        if (recipe, n) not in self.graphs:
            made = [site(self.op, recipe, n, grid=grid) for grid in (grids(n) if on_grid else ((),))]
            self.graphs[recipe, n] = next((graph for graph in made if isinstance(graph, Graph)), made[0])
        return self.graphs[recipe, n]

    def seconds(self, recipe: Recipe | None, n: int, machine: Machine, dtype: str | None = None,
                phase: str = "prefill") -> float | No:  # fmt: skip
        """Predicted seconds at n tokens, or why there are none."""
        graph = self.graph(recipe, n)
        if isinstance(graph, No):
            return graph
        try:
            return seconds(graph, {"n": n}, machine, dtype=dtype, phase=phase)
        except IRError as error:
            return No(str(error), self.op.results[0])


def grids(n: int) -> list[tuple[int, ...]]:
    """Grids of n tokens: of a picture, and of four frames where n has them."""
    found: list[tuple[int, ...]] = []
    for frames in (1, 4):
        if n % frames == 0:
            each = n // frames
            side = next(s for s in range(math.isqrt(each), 0, -1) if each % s == 0)
            found.append((side, each // side) if frames == 1 else (frames, side, each // side))
    return found


# ---- from where on -------------------------------------------------------------------------------


def crossover(
    op: Op, recipe: Recipe | str, machine: Machine, *, measured: bool = False, dtype: str | None = None,
    phase: str = "prefill", most: int = MOST, clock: Clock | None = None,
) -> int | None:  # fmt: skip
    """Tokens from which on a recipe is faster than an `attention` op of this batch, heads, width and mask.

    Predicted; with `measured=True` timed on random operands at 256 to 16,384 tokens through the eager backend
    on this machine, until a call takes 0.3 s, and kept; beyond those the prediction is scaled to the last.
    None where it is not faster at `most` tokens. clock: seconds of a graph at so many tokens, for tests.
    Raises RecipeError where the recipe refuses the site, or does at every length.
    """
    recipe, place = recipe_named(recipe), Site(op)
    ratio: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    if measured:
        if phase != "prefill":
            raise SubquadError("measured=True times whole sequences: a decode crossover is predicted only")
        ratio = _ratios(place, recipe, machine, dtype, clock)
    if phase == "decode" and not classify_op(op).causal:
        raise RecipeError(f"{recipe} has no crossover here: an attention that is not causal does not decode")
    refused: list[No] = []

    @functools.cache
    def faster(n: int) -> bool | None:
        exact, new = (place.seconds(r, n, machine, dtype, phase) for r in (None, recipe))
        for time in (exact, new):
            if isinstance(time, No):
                refused.append(time)
                return None
        return float(new) * between(ratio, n) < float(exact)  # type: ignore[arg-type]

    if "grid" in recipe.needs:
        lengths = [4 * s * s for s in (2, 4, 7, 8, 14, 16, 28, 32, 64, 128, 256, 512) if 4 * s * s <= most]
    else:
        lengths = [
            min(most, round(16 * 2 ** (i / 2))) for i in range(2 * max(1, int(math.log2(most / 16))) + 1)
        ]
    known = [(n, result) for n in lengths if (result := faster(n)) is not None]
    if not known:
        why = refused[0].reason if refused else "no length was tried"
        raise RecipeError(f"{recipe} has no crossover here: {why}")
    slower = [i for i, (_, result) in enumerate(known) if not result]
    if not slower:
        return known[0][0]
    if slower[-1] == len(known) - 1:
        return None
    low, high = known[slower[-1]][0], known[slower[-1] + 1][0]
    while "grid" not in recipe.needs and high - low > max(1, low // 64):
        half = (low + high) // 2
        low, high = (low, half) if faster(half) else (half, high)
    return high


def _ratios(
    place: Site, recipe: Recipe, machine: Machine, dtype: str | None, clock: Clock | None
) -> tuple[tuple[float, float], ...]:
    """(tokens, by how much the measured quotient of times is above the predicted one), rising."""
    times = [_times(place, r, machine.kind, dtype, clock) for r in (None, recipe)]
    found = []
    for n in sorted(times[0].keys() & times[1].keys()):
        exact, new = (place.seconds(r, n, machine, dtype) for r in (None, recipe))
        if not (isinstance(exact, No) or isinstance(new, No)):
            found.append((float(n), (times[1][n] / times[0][n]) / (new / exact)))
    if not found:
        raise RecipeError(f"{recipe} could not be measured at any of {LENGTHS} tokens: it refuses them here")
    return tuple(found)


def _times(
    place: Site, recipe: Recipe | None, device: str, dtype: str | None, clock: Clock | None
) -> dict[int, float]:
    """Seconds by tokens, at geometric lengths until one took long: kept ones, or timed and kept."""
    from .speeds import graph_seconds

    mask, op = classify_op(place.op), place.op
    types = ", ".join(str(_resized(x.type, symbol("n"))) for x in op.args[:3])
    what = f"{types}; mask {mask.kind}, window {mask.window}, {dict(op.attrs)}; {recipe or 'exact'}"
    key = f"{identity(device)}; {what}; {dtype or 'as it is'}"
    try:
        kept = {int(n): float(took) for n, took in recall("times", key).items()} if clock is None else {}
    except (AttributeError, TypeError, ValueError):
        kept = {}
    if kept and all(math.isfinite(took) and took > 0 for took in kept.values()):
        return kept
    time = clock or functools.partial(graph_seconds, device=device, dtype=dtype)
    found: dict[int, float] = {}
    for n in LENGTHS:
        graph = place.graph(recipe, n)
        if isinstance(graph, Graph):
            found[n] = time(graph, n)
            if found[n] > PATIENCE:
                break
    if clock is None and found:
        keep("times", key, found)
    return found
