"""The causal language models of Hugging Face, every class of its mapping, from shrunken configs.

One case a model type, `causal-lm` families by name, on SDPA where the class has it; and the
families that other compilers are measured by, each in eager attention and in SDPA.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .case import NotBuiltError, case, tiny
from .shrink import shrunk

GIVEN: dict[str, dict[str, Any]] = {}
"""Fields that the names alone do not settle, by model type."""


def _names() -> dict[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def model(model_type: str, attention: str | None = None) -> Any:
    """The tiny causal language model of a model type; attention: "eager", "sdpa", or what it has."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = shrunk(CONFIG_MAPPING[model_type], **GIVEN.get(model_type, {}))
    config.use_cache = False
    kind = getattr(transformers, _names()[model_type], None)
    if kind is None:
        raise NotBuiltError(f"transformers exports no {_names()[model_type]}")
    if attention is None:
        attention = "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"
    return tiny(lambda: kind._from_config(config, attn_implementation=attention))


def tokens(batch: int, length: int, padded: tuple[int, ...]) -> dict[str, Any]:
    """input_ids [batch, length] and attention_mask, row i with padded[i] masked places on the left."""
    draw = torch.Generator().manual_seed(batch)
    ids = torch.randint(5, 80, (batch, length), generator=draw)
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row, places in enumerate(padded):
        mask[row, :places] = 0
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def build(model_type: str, attention: str | None = None) -> tuple[Any, dict[str, Any]]:
    """The model and its first call: batch 2, length 13, two places of the second row masked."""
    return model(model_type, attention), tokens(2, 13, (0, 2))


second = partial(tokens, 3, 17, (0, 5, 1))
OPEN = {"input_ids": {0: "b", 1: "n"}, "attention_mask": {0: "b", 1: "n"}, "use_cache": None}

for _type in _names():
    case(_type, "causal-lm", second=second, dynamic_shapes=OPEN)(partial(build, _type))
