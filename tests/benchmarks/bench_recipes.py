"""What every recipe does to pretrained and to random models, put in by name and untrained.

    python tests/benchmarks/bench_recipes.py                     # every recipe, in a minute or two
    python tests/benchmarks/bench_recipes.py elu1 "window(size=16)"

all-MiniLM-L6-v2 (six layers, real weights) embeds 16 docstrings of the standard library, cut at 128
tokens, the shorter ones padded. The others are small and random, drawn five times as wide as usual, so
that attention is not flat: a ViT of transformers, four layers, 14 x 14 patches and a class token, its grid
inferred; GPT-2 and Llama of two layers, 96 tokens, causal, the second half of one text padding. Each model
is captured once.

cos is the mean cosine of the embeddings (of MiniLM's sentences; else of all tokens that are no padding:
class tokens alone would flatter recipes that keep theirs exact) with the original's; err the norm of the
difference over the norm of the original's.
"mask": the recipe does not honour the model's mask. "-": it refuses for a reason that stands below.
"""

import argparse
import time

import torch
from torch import nn

from subquad.demo import docstrings, minilm
from subquad.ir import RecipeError
from subquad.passes import RECIPES, recipe_named
from subquad.tables import grid, plain
from subquad.trial import Damage, Trial

WIDE = 0.1
"""Standard deviation of random weights; transformers draws at 0.02."""

SHORT = {
    "agent_sd": "agent_sd(agents=16)", "kinetics": "kinetics(size=8,pages=4,skip=0)",
    "liger": "liger(size=16)", "lolcats": "lolcats(size=16)", "pisa": "pisa(size=16)",
    "taylor2": "taylor2(size=16)", "window": "window(size=16)",
}  # fmt: skip
"""Recipes that by name alone see all of texts this short exactly, or most, are tried like this as well."""


class States(nn.Module):
    """The last states [b, n, d] of all tokens of pictures, or of texts, where they are 0 at padding."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, mask=None):
        """mask: [b, n], 0 at padding, for a causal model."""
        if mask is None:
            return self.model(x).last_hidden_state
        return self.model(x, attention_mask=mask).last_hidden_state * mask[..., None]


def every():
    """The specs that are tried: each recipe by name, then as SHORT has it."""
    for name in sorted(RECIPES):
        yield name
        if name in SHORT:
            yield SHORT[name]


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
    yield "ViT", States(ViTModel(vit, add_pooling_layer=False)), (torch.randn(8, 3, 112, 112),)
    gpt2 = GPT2Config(
        vocab_size=500, n_positions=128, n_embd=128, n_layer=2, n_head=4, use_cache=False,
        initializer_range=WIDE,
    )  # fmt: skip
    ids, mask = torch.randint(500, (8, 96)), torch.ones(8, 96, dtype=torch.int64)
    mask[1, 48:] = 0
    yield "GPT-2", States(GPT2Model(gpt2)), (ids, mask)
    llama = LlamaConfig(
        vocab_size=500, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False, initializer_range=WIDE,
    )  # fmt: skip
    yield "Llama", States(LlamaModel(llama)), (ids, mask)


def attempt(trial, args, exact, spec):
    """The damage of a recipe, or None, and why it is not at all sites, or None."""
    try:
        fast, sites = trial.put(spec)
    except RecipeError as error:
        return None, str(error)
    left = [site for site in sites if site.decision != spec]
    why = left[0].reason if left else None
    if len(left) == len(sites):
        return None, why
    with torch.no_grad():
        after = fast(*args)
    if exact.ndim == 3 and len(args) == 2:
        exact, after = (x[args[1].bool()] for x in (exact, after))
    return Damage.of(exact, after), why and f"in {len(sites) - len(left)} of {len(sites)} layers: {why}"


def main() -> None:
    """The table, then the reasons of what was refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", help="default: all, by name")
    specs = [str(recipe_named(spec)) for spec in parser.parse_args().recipes or every()]
    start, names = time.perf_counter(), []
    rows, reasons = {spec: [spec] for spec in specs}, {}
    for name, model, args in models():
        names += [f"{name} cos>", "err>"]
        trial = Trial(model.eval(), args)
        with torch.no_grad():
            exact = model(*args)
        for spec in specs:
            damage, why = attempt(trial, args, exact, spec)
            unmasked = damage is None and "; this mask is " in why
            if damage is None:
                rows[spec] += ["mask" if unmasked else "-", ""]
            else:
                rows[spec] += [f"{damage.cosine:.3f}", f"{damage.relative:.2g}"]
            if why and not unmasked:
                reasons.setdefault((spec, why.replace(f"{spec} does not fit: ", "")), []).append(name)
    table = grid("recipe", *names)
    for row in rows.values():
        table.add_row(*row)
    print(plain(table))
    if reasons:
        words = grid("", "")
        words.show_header = False
        for (spec, why), where in reasons.items():
            words.add_row(spec, f"{', '.join(where)}: {why}")
        print(f"\n{plain(words)}")
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
