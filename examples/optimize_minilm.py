"""A pretrained sentence encoder: exact first, then with attention made linear in one layer.

    python examples/optimize_minilm.py

Needs the extra `models`; the weights come with it, nothing is downloaded.
"""

import torch
from torch.export import Dim

import subquad
from subquad.demo import docstrings, minilm
from subquad.trial import Damage

model, tokenize = minilm()
texts = docstrings(16)
ids, mask = tokenize(texts)

# Captured on four texts, with batch and length left open: it then runs on any number of them.
shapes = {0: Dim("batch"), 1: Dim("length", max=512)}
few = tokenize(texts[:4])
fast = subquad.optimize(model, few, dynamic_shapes=(shapes, shapes))
print(fast.log)

comparison = subquad.compare(model, fast, (ids, mask), repeats=2)
print(f"\n{comparison}\n")
comparison.assert_close()

# An approximation happens only where it is asked for, here in one layer of six.
linear = subquad.optimize(
    model, few, attention={"*layer.5.*": "elu1"}, dynamic_shapes=(shapes, shapes), check=False
)
for site in linear.sites:
    print(f"{site.path}: {site.decision}")
with torch.no_grad():
    damage = Damage.of(model(ids, mask), linear(ids, mask))
print(f"\nembeddings with one linear layer: mean cosine {damage.cosine:.3f}, smallest {damage.smallest:.3f},")
print(f"nearest neighbour the same for {damage.same:.0%} of the texts")
