"""The causal language models of Hugging Face, every class of its mapping, from shrunken configs.

One case a model type, `causal-lm` families by name, on SDPA where the class has it; and the
families that other compilers are measured by, each in eager attention and in SDPA.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.export import Dim

from .case import case, tiny
from .shrink import shrunk


def _names() -> dict[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def model(model_type: str, attention: str | None = None, **given: Any) -> Any:
    """The tiny causal language model of a model type; attention: "eager", "sdpa", or what it has.

    given: fields of its config.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = getattr(transformers, _names()[model_type])
    wanted = CONFIG_MAPPING[model_type]
    if kind.config_class is not None and kind.config_class.model_type != model_type:
        wanted = kind.config_class  # the language model in a multimodal one
    if hasattr(wanted, "is_decoder"):
        given = {"is_decoder": True, **given}
    config = shrunk(wanted, **given)
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
    return {"input_ids": ids, "attention_mask": mask}


def build(model_type: str, attention: str | None = None, **given: Any) -> tuple[Any, dict[str, Any]]:
    """The model and its first call: batch 2, length 13, two places of the second row masked."""
    return model(model_type, attention, **given), tokens(2, 13, (0, 2))


second = partial(tokens, 3, 17, (0, 5, 1))
AXES = {0: Dim.AUTO, 1: Dim.AUTO}  # torch finds the ranges; what it fixes, the second call meets
OPEN = {"input_ids": AXES, "attention_mask": AXES}
SIZES = {0: "b", 1: Dim("n", max=128)}  # as a user would name them
NAMED = {"input_ids": SIZES, "attention_mask": SIZES}

FAST = {"llama-eager", "llama-sdpa", "mistral-eager", "gemma2-eager", "bloom-eager", "mixtral"}


def _register(name: str, axes: Any, *model_type: Any, **given: Any) -> None:
    build_it = partial(build, *model_type, **given)
    case(name, "causal-lm", second=second, dynamic_shapes=axes, fast=name in FAST)(build_it)


for _type in _names():
    if _type != "xlstm":
        _register(_type, OPEN, _type)

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", dict(num_key_value_heads=2)),
    "llama-mha": ("llama", dict(num_key_value_heads=4)),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {}),
    "gemma2": ("gemma2", {}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {}),
    "bloom": ("bloom", {}),
    "falcon": ("falcon", {}),
    "falcon-alibi": ("falcon", dict(alibi=True)),
}
"""Families that other compilers are measured by: model type, and fields of the config."""

for _name, (_type, _fields) in PEERS.items():
    for _attention in ("eager", "sdpa")[: 1 if _type in ("gemma2", "bloom") else 2]:  # these refuse SDPA
        _register(f"{_name}-{_attention}", NAMED, _type, _attention, **_fields)


def _unpadded(name: str, model_type: str) -> None:
    def ids_of(batch: int, length: int) -> dict[str, Any]:
        return {"input_ids": tokens(batch, length, ())["input_ids"]}

    case(name, "causal-lm", second=partial(ids_of, 3, 17), dynamic_shapes={"input_ids": AXES})(
        lambda: (model(model_type), ids_of(2, 13))
    )


_unpadded("llama-unpadded", "llama")  # no mask given: the model looks for packed rows by itself
_unpadded("xlstm", "xlstm")  # takes no mask
