"""A language model trained with softmax attention, then made linear: what it costs in bits per byte.

    python examples/linearize_language_model.py --checkpoint FOLDER

Trains a byte-level decoder of four layers on the source of the standard library, 20 minutes on two busy
cores, kept in FOLDER for the next time, and prints held-out bits per byte: softmax, then recipes in all
layers and in three of four, stage by stage of fitting, at the training length and at four times that.
Expect 1.90 for softmax and 0.9 % more for slots in all layers (docs/linearizing.md has the table).
`--quick` trains for seconds, to see that all of it runs.
"""

import argparse
import math
import sysconfig
import time
import zlib
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from subquad.api import captured_at, linearizing, recipes_of
from subquad.assemble import assembled
from subquad.calibration import Batch
from subquad.distil import fit_end_to_end
from subquad.fit import fit_layers
from subquad.passes import EXACT, Pipeline, canonicalize, recipe_named

LENGTH, STEPS = 1024, 1200
"""Tokens of a training example, and steps of training."""


class Block(nn.Module):
    """A pre-norm transformer block; queries and keys carry rotary positions."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(d), nn.RMSNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x, cos, sin):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (rotate(y, cos, sin) for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def rotate(x, cos, sin):
    """Rotary positions (arXiv:2104.09864): the two halves of the features of x turned by the angles."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class LanguageModel(nn.Module):
    """Bytes [b, n] to the logits [b, n, 256] of the next.

    The slowest angle makes a turn in 625 places, so that training has seen every angle, and a longer text
    has no other (arXiv:2310.05209).
    """

    def __init__(self, d: int = 256, heads: int = 4, layers: int = 4, base: float = 100.0):
        super().__init__()
        self.embed = nn.Embedding(256, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(d), nn.Linear(d, 256, bias=False)
        half = d // heads // 2
        self.register_buffer("rates", base ** -(torch.arange(half) / half), persistent=False)

    def forward(self, ids):
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * self.rates
        cos, sin = angles.cos(), angles.sin()
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))


def sources(folder: str = sysconfig.get_path("stdlib")) -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes of the standard library's source, i64: to train on, and the held-out files, 1 of 16.

    Without tests, tables of characters and what was installed later. A file's name alone decides.
    """
    out = {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "__phello__"}
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for path in sorted(Path(folder).rglob("*.py")):
        name = path.relative_to(folder)
        if not out & set(name.parts):
            parts[zlib.crc32(name.as_posix().encode()) % 16 == 0].append(path.read_bytes() + b"\0")
    train, held = (torch.frombuffer(bytearray(b"".join(p)), dtype=torch.uint8).long() for p in parts)
    return train, held


def batches(data: torch.Tensor, length: int, size: int, count: int, seed: int = 0) -> list[torch.Tensor]:
    """`count` batches [size, length] at random places of the data."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(data) - length, (count, size), generator=generator)
    return [torch.stack([data[i : i + length] for i in row]) for row in starts]


def loss_of(logits, ids):
    """Nats of a byte after the first."""
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model, data: torch.Tensor, length: int = LENGTH, total: int = 2**16) -> float:
    """Bits of a byte of the data, read `length` at a time: the same `total` bytes for every length.

    They are stretches of 4 * LENGTH spread evenly over the data.
    """
    stretch = 4 * LENGTH
    starts = torch.linspace(0, len(data) - stretch, total // stretch).long()
    windows = torch.cat([data[i : i + stretch] for i in starts]).view(-1, 1, length)
    return float(torch.stack([loss_of(model(ids), ids) for ids in windows]).mean() / math.log(2))


def train(
    data: torch.Tensor, steps: int, tokens: int = 4096, peak: float = 3e-3, seed: int = 0
) -> LanguageModel:
    """A model trained with AdamW, its rate warmed up and brought down by a cosine.

    The first third of the steps sees more and shorter examples. In bfloat16 where the processor
    multiplies it; weights and optimiser are float32.
    """
    torch.manual_seed(seed)
    model = LanguageModel()
    matrices, rest = ([p for p in model.parameters() if (p.dim() == 2) == two] for two in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))
    warm = max(1, steps // 20)

    def rate(step: int) -> float:
        return (step + 1) / warm if step < warm else 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    short = batches(data, LENGTH // 4, 4 * tokens // LENGTH, steps // 3, seed)
    long = batches(data, LENGTH, tokens // LENGTH, steps - steps // 3, seed + 1)
    narrow, start = torch.ops.mkldnn._is_mkldnn_bf16_supported(), time.perf_counter()
    for step, ids in enumerate(short + long, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = loss_of(model(ids), ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == steps:
            bits, spent = loss.item() / math.log(2), time.perf_counter() - start
            print(f"step {step:5}: {bits:.3f} bits per byte, {spent:.0f} s", flush=True)
    return model.eval()


def load(folder: str | Path | None, data=None, steps: int = STEPS, seed: int = 0) -> LanguageModel:
    """The model written to `folder`, or one trained on `data` and written there where there is none."""
    path = Path(folder) / f"lm-{steps}-{seed}.safetensors" if folder else None
    if path and path.is_file():
        model = LanguageModel()
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()
    model = train(sources()[0] if data is None else data, steps, seed=seed)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(model.state_dict(), path)
    return model


STAGES = ("untrained", "closed form", "layer-wise", "end-to-end", "all weights")
"""How far it is fitted, end to end from the stage before; at last the model's own weights too."""


class Linear:
    """The model captured once, to put recipes in the place of attention and fit them on texts."""

    def __init__(self, model: nn.Module, inputs: list[torch.Tensor]):
        self.model = model
        sizes = {0: torch.export.Dim("b", max=64), 1: torch.export.Dim("n", max=2**16)}
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
    "liger(size=16,share=1.0)",  # the window alone: what all text before it is worth
    "window(size=16)", "slots(size=16,count=32)", "kinetics(size=16,pages=4,skip=0)", "lolcats(size=16)",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="folder of the trained model; without it nothing is kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--steps", type=int, default=150, help="of fitting, in each stage")
    parser.add_argument("--quick", action="store_true", help="seconds of training: the figures mean nothing")
    given = parser.parse_args()
    steps, total, count = STEPS, 2**16, 64
    if given.quick:
        steps, total, count = 3, 2**13, 10
        given.recipes, given.stages, given.steps = ["slots(size=16,count=8)"], STAGES[1:2], 1

    data, held = sources()
    print(f"{len(data) / 1e6:.1f} MB to train on, {len(held) / 1e6:.1f} MB held out")
    model = load(given.checkpoint, data, steps, given.seed)
    texts = batches(data, LENGTH, 2, count, given.seed + 2)
    exact = {n: bits_per_byte(model, held, n, total) for n in (LENGTH, 4 * LENGTH)}
    print(f"\n{'held-out bits per byte':54}" + "".join(f"{f'at {n}':>10}{'':8}" for n in exact))
    print(f"{'softmax':54}" + "".join(f"{x:10.4f}{'':8}" for x in exact.values()))
    linear = Linear(model, texts)
    for recipe in given.recipes:
        for name, where in (("all", [0, 1, 2, 3]), ("3 of 4", [1, 2, 3])):
            weights: dict = {}
            learns = bool(recipe_named(recipe).learns)
            for stage in (s for s in given.stages if learns or s in (STAGES[0], STAGES[4])):
                start = time.perf_counter()
                weights = linear.fit(recipe, where, stage, weights, given.steps, given.seed)
                spent, fast = time.perf_counter() - start, linear.put(recipe, where, weights)
                figures = {n: bits_per_byte(fast, held, n, total) for n in exact}
                text = "".join(f"{x:10.4f}{x / exact[n] - 1:+8.1%}" for n, x in figures.items())
                print(f"{recipe:34}{name:8}{stage:12}{text}{spent:7.0f} s", flush=True)


if __name__ == "__main__":
    main()
