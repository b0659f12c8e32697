"""A pretrained sentence encoder with all of its attention made linear, fitted in minutes on a CPU.

    python examples/linearize_minilm.py                    the table of docs/linearizing.md
    python examples/linearize_minilm.py --recipe "slots(size=16,count=32)" --seed 1
    python examples/linearize_minilm.py --quick            seconds, to see that all of it runs

Texts are docstrings of this Python's standard library of 64 tokens or more, cut at 128; a quarter of
them, by a hash of the text, is never fitted on and gives the figures. Needs the extra `models`.
"""

import argparse
import ast
import hashlib
import random
import sysconfig
import time
import warnings
from pathlib import Path

import torch
from torch.export import Dim

from subquad import recipe
from subquad.api import captured_at, linearizing, recipes_of
from subquad.assemble import assembled
from subquad.calibration import Batch
from subquad.demo import minilm
from subquad.distil import fit_end_to_end
from subquad.fit import fit_layers
from subquad.passes import EXACT, Pipeline, canonicalize, find_sites, recipe_named
from subquad.passes.recipes.pieces import normalised, windowed
from subquad.trial import Damage

LEAST, MOST = 64, 128
"""Tokens of a text."""
RECIPES = ("near(size=16)", "window(size=16)", "hedgehog", "lolcats(size=16)", "slots(size=16,count=32)")


@recipe(paper="", kind="approximate", masks={"none", "padding"}, square=True)
def near(q, k, v, site, *, size: int = 16):
    """The window of `slots` alone: what the slots add is the difference."""
    return normalised(
        windowed(q, k, v, size=size, scale=site.scale, causal=False, padding=site.padding), q.dtype
    )


def docstrings(tokenize) -> tuple[list[str], list[str]]:
    """Those to fit on and those held out."""
    found: dict[str, None] = {}
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(path.relative_to(root).parts):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # what other versions' parsers are tested with
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                found[" ".join((ast.get_docstring(node) or "").split())] = None
    texts = [text for text in found if len(text) > LEAST and int(tokenize([text])[1].sum()) >= LEAST]
    held = {text for text in texts if int(hashlib.sha256(text.encode()).hexdigest(), 16) % 4 == 0}
    return [text for text in texts if text not in held], sorted(held)


class Encoder:
    """The captured model: `put` gives it with a recipe at every attention, and weights for it."""

    def __init__(self):
        self.model, self.tokenize = minilm(MOST)
        few = self.tokenize(["of two", "texts"])
        shapes = {0: Dim("batch"), 1: Dim("length", max=512)}
        self.captured, _, _ = captured_at(self.model, few, {}, (shapes, shapes))
        self.graph = EXACT.run(self.captured.graph)[0]
        self.sites = range(len(find_sites(self.graph)))

    def linear(self, spec):
        return Pipeline(linearizing(recipes_of(spec)), canonicalize).run(self.graph)[0]

    def put(self, spec, weights):
        return assembled(self.model, self.captured, self.linear(spec), weights=weights, share_weights=True)

    def batches(self, texts, size=8, seed=0):
        """Texts of like length together, in an order drawn by the seed."""
        texts, made = sorted(texts, key=len), []
        for i in range(0, len(texts), size):
            args = self.tokenize(texts[i : i + size])
            made.append(Batch(args, {}, tuple(self.captured.signature.flatten(args, {}))))
        return random.Random(seed).sample(made, len(made))

    @torch.no_grad()
    def embed(self, model, texts, size=32):
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = [model(*self.tokenize([texts[i] for i in order[at : at + size]]))
                 for at in range(0, len(texts), size)]  # fmt: skip
        return torch.cat(parts)[torch.tensor(order).argsort()]


def timed(function, *args, **options):
    """What it gives, and the seconds that it took, passed and of CPU: on a busy machine they differ."""
    began = time.perf_counter(), time.process_time()
    result = function(*args, **options)
    return result, (time.perf_counter() - began[0], time.process_time() - began[1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=60, metavar="STEPS")
    parser.add_argument("--end", type=int, default=240, metavar="STEPS")
    parser.add_argument("--train", action="append", choices=("recipes", "lora", "all"))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.recipe, given.layers, given.end = ["slots(size=16,count=8)"], 2, 2

    encoder = Encoder()
    fit, held = docstrings(encoder.tokenize)
    if given.quick:
        fit, held = fit[:64], held[:24]
    batches = encoder.batches(fit, seed=given.seed)
    tokens = sum(int(batch.inputs[1].sum()) for batch in batches)
    print(f"{len(fit)} texts to fit on ({tokens} tokens), {len(held)} held out; seed {given.seed}, "
          f"{torch.get_num_threads()} threads\n")  # fmt: skip
    exact = encoder.embed(encoder.model, held)
    print(f"{'recipe':26}{'fitted':22}{'seconds':>8}{'CPU':>6}{'cosine':>9}{'smallest':>9}{'neighbour':>10}")

    def row(spec, how, seconds, weights):
        damage = Damage.of(exact, encoder.embed(encoder.put(spec, weights), held))
        print(f"{spec:26}{how:22}{seconds[0]:8.0f}{seconds[1]:6.0f}{damage.cosine:9.4f}{damage.smallest:9.3f}{damage.same:10.1%}",
              flush=True)  # fmt: skip

    for spec in given.recipe or RECIPES:
        found = recipe_named(spec)
        row(spec, "not", (0.0, 0.0), {})
        if not found.learns:
            continue
        chosen = [(site, found) for site in encoder.sites]
        here = dict(seed=given.seed, seconds=3600.0)
        start, took = timed(fit_layers, encoder.captured, encoder.graph, chosen, batches, steps=0, **here)
        if start.after != start.before:
            row(spec, "closed form", took, start.weights)
        layers, before = timed(
            fit_layers, encoder.captured, encoder.graph, chosen, batches, steps=given.layers, **here
        )
        row(spec, "layer by layer", before, layers.weights)
        for train in given.train or ("recipes", "lora"):
            whole, took = timed(
                fit_end_to_end, encoder.captured, encoder.graph, encoder.linear(spec), batches,
                weights=layers.weights, train=train, loss="cosine", steps=given.end, **here,
            )  # fmt: skip
            row(spec, f"end to end, {train}", tuple(map(sum, zip(before, took))), whole.weights)


if __name__ == "__main__":
    main()
