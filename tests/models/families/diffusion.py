"""Denoisers of diffusers: transformers of latents, and the U-net of Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from models.case import tiny

from .inputs import noise, padded, register

B, N = Dim("b", max=32), Dim("n", max=32)  # by names: nothing in a model says that its inputs are as many
BATCH, TOKENS = {0: B}, {0: B, 1: N}


def denoiser(
    name: str, model: str, inputs: Callable[..., dict[str, Any]], axes: dict[str, Any],
    second: tuple[int, ...] = (3, 11), **sizes: Any,
) -> None:  # fmt: skip
    """Register a model of diffusers on b latents and 7 tokens of a prompt; on `second`, the axes open."""

    def make() -> nn.Module:
        import diffusers

        return tiny(lambda: getattr(diffusers, model)(**sizes))

    register(name, "diffusion", make, inputs, (2, 7), second, axes)


def steps(b: int) -> Tensor:
    """Noise levels [b]."""
    return torch.arange(b) * 100 + 10


def latents(b: int, _: int) -> dict[str, Any]:
    """Latents of classes."""
    return {"hidden_states": noise(b, 4, 8, 8), "timestep": steps(b), "class_labels": torch.arange(b) % 5,
            "return_dict": False}  # fmt: skip


def prompted(b: int, n: int) -> dict[str, Any]:
    """Latents and a padded prompt."""
    return {
        "hidden_states": noise(b, 4, 8, 8), "timestep": steps(b), "encoder_hidden_states": noise(b, n, 16),
        "encoder_attention_mask": padded(b, n), "return_dict": False,
    }  # fmt: skip


def sized(b: int, n: int) -> dict[str, Any]:
    """`prompted`, without a size of the picture."""
    return {**prompted(b, n), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


def sampled(b: int, n: int) -> dict[str, Any]:
    """Latents of the U-net, which calls them a sample."""
    found = prompted(b, n)
    return {"sample": found.pop("hidden_states"), **found}


def pooled(b: int, n: int) -> dict[str, Any]:
    """Latents, a prompt, and the prompt in one vector."""
    found = prompted(b, n)
    del found["encoder_attention_mask"]
    return {**found, "pooled_projections": noise(b, 16)}


def packed(b: int, n: int) -> dict[str, Any]:
    """Flux: 16 patches as tokens, a prompt, and the place of every token."""
    places = torch.zeros(16, 3)
    places[:, 1], places[:, 2] = torch.arange(16.0) // 4, torch.arange(16.0) % 4
    return {
        "hidden_states": noise(b, 16, 4), "encoder_hidden_states": noise(b, n, 16),
        "pooled_projections": noise(b, 16), "timestep": steps(b) / 1000, "img_ids": places,
        "txt_ids": torch.zeros(n, 3), "return_dict": False,
    }  # fmt: skip


PROMPT = {"encoder_hidden_states": TOKENS, "encoder_attention_mask": TOKENS, "timestep": BATCH}
POOLED = {"hidden_states": BATCH, "encoder_hidden_states": TOKENS, "timestep": BATCH,
          "pooled_projections": BATCH}  # fmt: skip
HEADS: dict[str, Any] = dict(num_attention_heads=4, attention_head_dim=8)

denoiser("dit", "DiTTransformer2DModel", latents,
         {"hidden_states": BATCH, "timestep": BATCH, "class_labels": BATCH}, **HEADS, in_channels=4,
         out_channels=4, num_layers=2, sample_size=8, patch_size=2, num_embeds_ada_norm=5,
         norm_num_groups=4)  # fmt: skip
denoiser("pixart", "PixArtTransformer2DModel", sized, {"hidden_states": BATCH, **PROMPT}, **HEADS,
         in_channels=4, out_channels=4, num_layers=2, sample_size=8, patch_size=2, cross_attention_dim=32,
         caption_channels=16, norm_num_groups=4)  # fmt: skip
denoiser("unet2d-condition", "UNet2DConditionModel", sampled, {"sample": BATCH, **PROMPT}, sample_size=8,
         block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
         cross_attention_dim=16, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
         up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
denoiser("sd3", "SD3Transformer2DModel", pooled, POOLED, **HEADS, sample_size=8, patch_size=2, in_channels=4,
         num_layers=2, caption_projection_dim=32, joint_attention_dim=16, pooled_projection_dim=16,
         out_channels=4, pos_embed_max_size=8)  # fmt: skip
denoiser("flux", "FluxTransformer2DModel", packed, {**POOLED, "txt_ids": {0: N}}, **HEADS, in_channels=4,
         num_layers=1, num_single_layers=1, joint_attention_dim=16, pooled_projection_dim=16,
         axes_dims_rope=(2, 2, 4))  # fmt: skip
denoiser("uvit2d", "UVit2DModel",
         lambda b, n: {"input_ids": torch.arange(b * 16).view(b, 4, 4) % 50,
                       "encoder_hidden_states": noise(b, n, 16), "pooled_text_emb": noise(b, 16),
                       "micro_conds": noise(b, 5).abs()},
         {"input_ids": BATCH, "pooled_text_emb": BATCH, "encoder_hidden_states": TOKENS,
          "micro_conds": BATCH},
         hidden_size=32, cond_embed_dim=16, micro_cond_encode_dim=4, micro_cond_embed_dim=20,
         encoder_hidden_size=16, vocab_size=64, codebook_size=60, num_hidden_layers=2, num_attention_heads=4,
         in_channels=16, block_out_channels=16, intermediate_size=48, block_num_heads=2,
         sample_size=4)  # fmt: skip
denoiser("sana", "SanaTransformer2DModel", prompted, {"hidden_states": BATCH, **PROMPT}, **HEADS,
         in_channels=4, out_channels=4, num_layers=1, num_cross_attention_heads=4, cross_attention_head_dim=8,
         cross_attention_dim=32, caption_channels=16, sample_size=8, patch_size=1)  # fmt: skip
denoiser("vae", "AutoencoderKL", lambda b, _: {"sample": noise(b, 3, 16, 16), "return_dict": False},
         {"sample": BATCH}, block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
         norm_num_groups=4, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4)  # fmt: skip
