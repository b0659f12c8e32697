"""A vision transformer trained with softmax attention, then made linear: what it costs in accuracy.

    python examples/linearize_digits.py --checkpoint FOLDER

Scikit-learn's digits (extra `examples`), drawn at 32 x 32 pixels, in patches of 2: 256 tokens. Trains
a transformer of four layers, 9 minutes on two busy cores, kept in FOLDER for the next time, and prints the
held-out accuracy: softmax, then recipes in all layers, stage by stage of fitting. Expect 97.1 % for softmax
and 95.3 % for agent attention end to end (docs/linearizing.md has the table). `--quick` trains for
seconds, to see that all of it runs.
"""

import argparse
import math
import time
from pathlib import Path

import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from subquad.api import captured_at, linearizing, recipes_of
from subquad.assemble import assembled
from subquad.calibration import Batch
from subquad.distil import fit_end_to_end
from subquad.fit import fit_layers
from subquad.passes import EXACT, Pipeline, canonicalize, recipe_named

SIZE, PATCH, EPOCHS = 32, 2, 50


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 3 * d), nn.Linear(3 * d, d)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Pictures [b, 1, 32, 32] to the logits [b, 10]: patches, learned positions, mean over the tokens."""

    def __init__(self, d: int = 64, heads: int = 2, layers: int = 4):
        super().__init__()
        self.patch = nn.Conv2d(1, d, kernel_size=PATCH, stride=PATCH)
        self.positions = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2, d) * 0.5)
        self.blocks = nn.Sequential(*(Block(d, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 10)

    def forward(self, pictures):
        x = self.patch(pictures).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


Labelled = tuple[torch.Tensor, torch.Tensor]


def digits() -> tuple[Labelled, Labelled]:
    """(pictures f32 [b, 1, 32, 32], labels i64 [b]): 1,347 to train on, 450 held out, always the same."""
    pictures, labels = load_digits(return_X_y=True)
    x = torch.tensor(pictures, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear")
    y = torch.tensor(labels)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    held, train = order[:450], order[450:]
    return (x[train], y[train]), (x[held], y[held])


def shifted(x: torch.Tensor, by: int = 4) -> torch.Tensor:
    """Each picture moved by up to `by` pixels, blank where nothing was."""
    b, _, h, w = x.shape
    rows, columns = torch.randint(0, 2 * by + 1, (2, b, 1))
    padded = F.pad(x, (by,) * 4, value=-1.0)[:, 0]
    i, j = rows + torch.arange(h), columns + torch.arange(w)
    return padded[torch.arange(b)[:, None, None], i[:, :, None], j[:, None, :]][:, None]


@torch.no_grad()
def accuracy(model, data: Labelled) -> float:
    """The share of the pictures that is told right."""
    right = [(model(x).argmax(1) == y).sum() for x, y in zip(data[0].split(50), data[1].split(50))]
    return float(sum(right)) / len(data[1])


def train(data: Labelled, epochs: int, size: int = 32, peak: float = 2e-3, seed: int = 0) -> ViT:
    """A model trained with AdamW, its rate warmed up and brought down by a cosine; pictures are shifted."""
    torch.manual_seed(seed)
    model, (x, y) = ViT(), data
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05)
    steps = epochs * (len(y) // size)
    warm, start = max(1, steps // 10), time.perf_counter()
    narrow = torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def rate(step: int) -> float:
        return (step + 1) / warm if step < warm else 0.01 + 0.495 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for epoch in range(epochs):
        losses = []
        for rows in torch.randperm(len(y)).split(size)[: len(y) // size]:
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                loss = F.cross_entropy(model(shifted(x[rows])).float(), y[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
        if (epoch + 1) % 5 == 0 or epoch + 1 == epochs:
            spent = time.perf_counter() - start
            print(f"epoch {epoch + 1:3}: loss {sum(losses) / len(losses):.3f}, {spent:.0f} s", flush=True)
    return model.eval()


def load(folder: str | Path | None, data: Labelled | None = None, epochs: int = EPOCHS, seed: int = 0) -> ViT:
    """The model written to `folder`, or one trained on `data` and written there where there is none."""
    path = Path(folder) / f"vit-{epochs}-{seed}.safetensors" if folder else None
    if path and path.is_file():
        model = ViT()
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()
    model = train(digits()[0] if data is None else data, epochs, seed=seed)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(model.state_dict(), path)
    return model


STAGES = ("untrained", "closed form", "layer-wise", "end-to-end", "all weights")
"""How far it is fitted, end to end from the stage before; at last the model's own weights too."""


class Linear:
    """The model captured once, to put recipes in the place of attention and fit them on pictures."""

    def __init__(self, model: nn.Module, inputs: list[torch.Tensor]):
        self.model = model
        sizes = {0: torch.export.Dim("b")}
        self.captured, _, _ = captured_at(model, (inputs[0],), {}, (sizes,))
        self.graph = EXACT.run(self.captured.graph)[0]
        self.batches = [Batch((x,), {}, (x,)) for x in inputs]

    def fit(self, recipe: str, where: list[int], stage: str, weights: dict, steps: int, seed: int) -> dict:
        """Weights for `recipe` in these layers, from those of the stage before."""
        if stage == "untrained":
            return {}
        options = {"steps": 0 if stage == "closed form" else steps, "seconds": 3600, "seed": seed}
        if stage in ("closed form", "layer-wise"):
            chosen = [(i, recipe_named(recipe)) for i in where]
            return fit_layers(self.captured, self.graph, chosen, self.batches, **options).weights
        linear = self.rewritten(recipe, where)
        options |= {"train": "recipes" if stage == "end-to-end" else "all", "loss": "kl", "weights": weights}
        return fit_end_to_end(self.captured, self.graph, linear, self.batches, **options).weights

    def rewritten(self, recipe: str, where: list[int]):
        """The graph with `recipe` in these layers."""
        recipes = recipes_of({f"blocks.{i}*": recipe for i in where})
        return Pipeline(linearizing(recipes), canonicalize).run(self.graph)[0]

    def put(self, recipe: str, where: list[int], weights: dict) -> nn.Module:
        """The model with `recipe` in these layers and these weights in it."""
        return assembled(self.model, self.captured, self.rewritten(recipe, where), weights=weights)


RECIPES = (
    "window(size=16)", "nystrom", "agent", "slots(size=16,count=32)", "lolcats(size=16)", "hedgehog",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="folder of the trained model; without it nothing is kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--steps", type=int, default=200, help="of fitting, in each stage")
    parser.add_argument("--quick", action="store_true", help="seconds of training: the figures mean nothing")
    given = parser.parse_args()
    epochs = 1 if given.quick else EPOCHS
    if given.quick:
        given.recipes, given.stages, given.steps = ["slots(size=16,count=8)"], STAGES[:3], 1

    data, held = digits()
    if given.quick:
        data, held = ((x[:96], y[:96]) for x, y in (data, held))
    print(f"{len(data[1])} pictures to train on, {len(held[1])} held out")
    model = load(given.checkpoint, data, epochs, given.seed)
    torch.manual_seed(given.seed)
    exact = accuracy(model, held)
    print(f"\nheld-out accuracy\n{'softmax':46}{exact:8.1%}")
    linear, where = Linear(model, list(shifted(data[0]).split(32))), [0, 1, 2, 3]
    for recipe in given.recipes:
        weights: dict = {}
        for stage in given.stages:
            if stage in STAGES[1:4] and not recipe_named(recipe).learns:
                continue
            start = time.perf_counter()
            weights = linear.fit(recipe, where, stage, weights, given.steps, given.seed)
            spent, found = time.perf_counter() - start, accuracy(linear.put(recipe, where, weights), held)
            drop = 100 * (found - exact)
            print(f"{recipe:34}{stage:12}{found:8.1%}{drop:+7.1f} points{spent:7.0f} s", flush=True)


if __name__ == "__main__":
    main()
