"""What every recipe does to pretrained and to random models, put in by name and untrained.

    python tests/benchmarks/bench_recipes.py                     # every recipe
    python tests/benchmarks/bench_recipes.py elu1 'window(size=16)'

all-MiniLM-L6-v2 (six layers, real weights) embeds 16 docstrings of the standard library, cut at 128
tokens and padded to the longest. The others are small and random: a ViT of transformers of four layers,
197 tokens in a grid of 14 x 14 and a class token; GPT-2 and Llama of two layers, 96 tokens, causal. Their
weights are drawn five times as wide as usual, so that attention is not flat. Each model is captured once.

cos is the mean cosine of the embeddings (MiniLM's sentences, the ViT's class token, the last states of
the causal models) with the original's, err the norm of the difference over the norm. Where a recipe
refuses, there is a -, and its reason is below.
"""

import argparse
import time
from collections import defaultdict

import torch
from torch import nn

from subquad.demo import docstrings, minilm
from subquad.ir import RecipeError
from subquad.passes import RECIPES, recipe_named
from subquad.tables import grid, plain
from subquad.trial import Damage, Trial

WIDE = 0.1
"""Standard deviation of random weights; transformers draws at 0.02."""


class Part(nn.Module):
    """One tensor of what a model of transformers gives for its one input."""

    def __init__(self, model, part):
        super().__init__()
        self.model, self.part = model, part

    def forward(self, x):
        return self.part(self.model(x).last_hidden_state)


def models():
    """(name, model, inputs): the pretrained one, then the random ones."""
    from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel, ViTConfig, ViTModel

    model, tokenize = minilm(tokens=128, attn_implementation="eager")
    yield "MiniLM", model, tokenize(docstrings(16))
    torch.manual_seed(0)
    vit = ViTConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, image_size=112,
        patch_size=8, initializer_range=WIDE,
    )  # fmt: skip
    yield (
        "ViT",
        Part(ViTModel(vit, add_pooling_layer=False), lambda y: y[:, 0]),
        (torch.randn(8, 3, 112, 112),),
    )
    gpt2 = GPT2Config(
        vocab_size=500,
        n_positions=128,
        n_embd=128,
        n_layer=2,
        n_head=4,
        use_cache=False,
        initializer_range=WIDE,
    )
    ids = torch.randint(500, (8, 96))
    yield "GPT-2", Part(GPT2Model(gpt2), lambda y: y), (ids,)
    llama = LlamaConfig(
        vocab_size=500, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False, initializer_range=WIDE,
    )  # fmt: skip
    yield "Llama", Part(LlamaModel(llama), lambda y: y), (ids,)


def attempt(trial, args, exact, spec) -> Damage | str:
    """The damage of a recipe at all sites, or why it is at none of them."""
    try:
        fast, sites = trial.put(spec)
    except RecipeError as error:
        return str(error)
    done = sum(site.decision == spec for site in sites)
    if not done:
        return next(site.reason for site in sites)
    with torch.no_grad():
        damage = Damage.of(exact, fast(*args))
    return damage if done == len(sites) else f"{done} of {len(sites)} sites: {sites}"


def main() -> None:
    """The table, then the reasons of what was refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", help="default: all, by name")
    specs = [str(recipe_named(spec)) for spec in parser.parse_args().recipes or RECIPES]
    start, found, names = time.perf_counter(), {}, []
    for name, model, args in models():
        names.append(name)
        trial = Trial(model.eval(), args)
        with torch.no_grad():
            exact = model(*args)
        for spec in specs:
            found[spec, name] = attempt(trial, args, exact, spec)
    table, reasons = grid("recipe", *(f"{head}>" for name in names for head in (f"{name} cos", "err"))), {}
    reasons = defaultdict(lambda: defaultdict(list))
    for spec in specs:
        row = [spec]
        for name in names:
            one = found[spec, name]
            if isinstance(one, Damage):
                row += [f"{one.cosine:.3f}", f"{one.relative:.2g}"]
            else:
                row += ["-", "-"]
                reasons[spec][one].append(name)
        table.add_row(*row)
    print(plain(table))
    print()
    for spec, why in reasons.items():
        for reason, where in why.items():
            print(f"{spec} at {', '.join(where)}: {reason}")
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
