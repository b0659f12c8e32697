"""Ten random budgets on a pretrained encoder: asked, promised, and measured on texts that nothing saw.

    python tests/benchmarks/bench_budgets.py [--budgets 10] [--texts 320] [--seed 0]

The encoder is all-MiniLM-L6-v2, the texts are docstrings of this Python, half of them for calibration.
Recipes are scored once and kept in a folder; each budget is then chosen, verified and, where it does not
hold, chosen again. "seconds" is what a budget takes by then.
"""

import argparse
import random
import tempfile
import time

import torch

import subquad
from subquad.budget import errors
from subquad.calibration import Calibration
from subquad.demo import docstrings, minilm

RECIPES = ("window(size=8)", "window(size=16)", "window(size=32)", "taylor1")


def main():
    """Print one line a budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budgets", type=int, default=10)
    parser.add_argument("--texts", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model, tokenize = minilm()
    draw, texts = random.Random(given.seed), docstrings(given.texts)
    draw.shuffle(texts)
    half = len(texts) // 2
    batches = [tokenize(texts[i : i + 8]) for i in range(0, half, 8)]
    held = [tokenize(texts[i : i + 8]) for i in range(half, len(texts), 8)]
    axes = {0: torch.export.Dim("b"), 1: torch.export.Dim("n", max=512)}
    print(f"{half} texts to calibrate on, {len(texts) - half} held out; recipes: {', '.join(RECIPES)}\n")
    print("asked     linear  promised  held out   kept  seconds")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.budgets):
            cosine, began = round(1 - 10 ** draw.uniform(-3.5, -1), 5), time.perf_counter()
            fast = subquad.optimize(
                model, batches[0], attention="auto", machine="epyc", check=False,
                budget=subquad.Budget(cosine=cosine, prefer="linear"),
                calibration=Calibration(batches, fit="none", recipes=RECIPES, folder=folder, seed=given.seed),
                dynamic_shapes=(axes, axes),
            )  # fmt: skip
            spent = time.perf_counter() - began
            with torch.no_grad():
                pairs = [(model(*x), fast(*x)) for x in held]
            before, after = (torch.cat(outputs) for outputs in zip(*pairs, strict=True))
            found, linear = 1 - errors(before, after)["cosine"], len(fast.plan.recipes())
            promised = 1 - fast.plan.promised["cosine"]
            kept = "yes" if found >= cosine else "NO"
            row = f"{cosine:7.5f}  {linear:2} of 6   {promised:7.5f}   {found:7.5f}  {kept:>4}  {spent:7.1f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
