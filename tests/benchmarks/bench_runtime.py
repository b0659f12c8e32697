"""Predicted beside measured times of a site, exact and under recipes, as its sequence grows.

    python tests/benchmarks/bench_runtime.py                              # the default recipes, some minutes
    python tests/benchmarks/bench_runtime.py elu1 "window(size=32)" --lengths 256,1024,4096
    python tests/benchmarks/bench_runtime.py --crossovers                 # from how many tokens on
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_runtime.py --clock cpu

Cells are predicted/measured milliseconds and their quotient. A length is left out once a call took longer
than --patience. Measured is the least time of a graph through the eager backend on random operands; constants
are those of `subquad calibrate-machine` (--fresh measures them again). Below stand the rank correlation
(Spearman) of all pairs, that of gains over exact attention at equal length, which is what a choice rests on,
and the median relative error. --clock cpu counts the seconds that one core worked, which other work on the
machine disturbs less: for one thread only.
"""

import argparse
import os
import tempfile
import time
from itertools import product

import numpy as np
import torch

from subquad import speeds
from subquad.ir import OPS, No, RecipeError, TensorType, building, symbol
from subquad.ir.ops.attention import attention
from subquad.ir.types import f32
from subquad.machine import identity, this_machine
from subquad.passes import recipe_named
from subquad.runtime import LENGTHS, Site, crossover

RECIPES = (
    "elu1", "hedgehog", "taylor1", "performer", "retnet", "mamba2", "gla", "deltanet", "lolcats", "window",
    "linformer(length=16384)", "nystrom",
)  # fmt: skip


def site(causal, heads, dim):
    """An attention of one sequence with its length open."""
    with building():
        shape = (1, heads, symbol("n"), dim)
        q, k, v = (OPS["input"](name=name, type=TensorType(f32, shape)) for name in "qkv")
        return attention(q, k, v, scale=dim**-0.5, causal=causal).op


def spearman(x, y):
    """The rank correlation of two sequences without ties."""
    x, y = (np.argsort(np.argsort(values)) for values in (x, y))
    return float(np.corrcoef(x, y)[0, 1])


def rows(specs, heads, dim):
    """(name, causal, place, recipe or None): exact attention, then every recipe under the masks it takes."""
    places = {causal: Site(site(causal, heads, dim)) for causal in (True, False)}
    for spec, causal in product((None, *specs), (True, False)):
        recipe = spec and recipe_named(spec)
        if recipe is None or ("causal" if causal else "none") in recipe.masks:
            yield f"{spec or 'exact'}{' causal' if causal else ''}", causal, places[causal], recipe


def table(specs, lengths, heads, dim, machine, patience):
    """Print the cells; (name, causal, tokens, predicted, measured) of each."""
    found = []
    print(f"{'':32}" + "".join(f"{n:>19}" for n in lengths))
    for name, causal, place, recipe in rows(specs, heads, dim):
        cells = []
        for n in lengths:
            graph = place.graph(recipe, n)
            if isinstance(graph, No):
                cells.append(f"{'-':>19}")
                continue
            told, took = place.seconds(recipe, n, machine), speeds.graph_seconds(graph, n)
            found.append((name, causal, n, told, took))
            cells.append(f"{1e3 * told:8.3g}/{1e3 * took:<5.3g}{told / took:5.2f}")
            if took > patience:
                break
        print(f"{name:32}" + "".join(cells), flush=True)
    return found


def verdict(found):
    """Correlations and errors."""
    told, took = (np.array([row[i] for row in found]) for i in (3, 4))
    errors = np.abs(told / took - 1)
    exact = {(causal, n): (a, b) for name, causal, n, a, b in found if name.startswith("exact")}
    gains = [(exact[c, n][0] / a, exact[c, n][1] / b) for name, c, n, a, b in found
             if (c, n) in exact and not name.startswith("exact")]  # fmt: skip
    right = np.mean([(a > 1) == (b > 1) for a, b in gains]) if gains else np.nan
    print(f"\n{len(found)} times: rank correlation {spearman(told, took):.3f}, median error "
          f"{np.median(errors):.0%}, nine in ten within {np.quantile(errors, 0.9):.0%}")  # fmt: skip
    print(f"{len(gains)} gains over exact attention: rank correlation {spearman(*zip(*gains)):.3f}, "
          f"faster or not is right in {right:.0%}")  # fmt: skip


def crossovers(specs, heads, dim, machine):
    """Tokens from which each recipe is faster: predicted, and corrected by measured times."""
    print(f"{'faster from tokens':32}{'predicted':>12}{'measured':>12}{'decoding':>12}")
    for name, _, place, recipe in rows(specs, heads, dim):
        if recipe is None:
            continue
        cells = []
        for how in ({}, {"measured": True}, {"phase": "decode"}):
            try:
                cells.append(crossover(place.op, recipe, machine, **how))
            except RecipeError:
                cells.append("-")
        cells = ["never" if cell is None else cell for cell in cells]
        print(f"{name:32}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def main() -> None:
    """Parse the options and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=LENGTHS)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--patience", type=float, default=2.0, help="seconds of a call, default %(default)s")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--fresh", action="store_true", help="measure the machine's constants again")
    parser.add_argument("--crossovers", action="store_true")
    args = parser.parse_args()
    if args.clock == "cpu":
        time.perf_counter = time.process_time
        os.environ["SUBQUAD_CACHE"] = tempfile.mkdtemp()  # other seconds than those that are kept
    torch.manual_seed(0)
    start = time.time()
    machine = this_machine("cpu", force=args.fresh)
    print(f"{identity('cpu')}; {args.heads} heads of {args.dim}; {args.clock} time; constants in "
          f"{time.time() - start:.1f} s\n")  # fmt: skip
    if args.crossovers:
        crossovers(args.recipes, args.heads, args.dim, machine)
    else:
        verdict(table(args.recipes, args.lengths, args.heads, args.dim, machine, args.patience))
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
