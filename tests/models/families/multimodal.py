"""Models of images and text together."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim

from .inputs import WIDTHS, ids, noise, padded, pretrained, register, text

B, N = Dim("b"), Dim("n", max=32)  # by names: nothing in a model says that its inputs are as many
BATCH, TOKENS = {0: B}, {0: B, 1: N}
TEXT: dict[str, Any] = dict(WIDTHS, vocab_size=99, max_position_embeddings=64)
IMAGE: dict[str, Any] = dict(WIDTHS, image_size=32, patch_size=8, num_channels=3)
OPEN = {"input_ids": TOKENS, "attention_mask": TOKENS, "pixel_values": BATCH}


def captioned(b: int, n: int) -> dict[str, Any]:
    """Padded text of n tokens, and an image for each row."""
    return {**text(b, n), "pixel_values": noise(b, 3, 32, 32)}


def towers(
    name: str, model: str, config: str, attention: str = "eager", n: int = 10, more: int = 13,
    text: Any = TEXT, image: Any = IMAGE, inputs: Any = captioned, **sizes: Any,
) -> None:  # fmt: skip
    """Register a model with a config of its text and one of its images."""

    def make() -> Any:
        return pretrained(
            model, config, attention, text_config=dict(text), vision_config=dict(image), **sizes
        )

    register(name, "multimodal", make, inputs, (2, n), (3, more),
             OPEN if n != more else dict.fromkeys(OPEN, BATCH))  # fmt: skip


CLIP = dict(TEXT, eos_token_id=98, bos_token_id=0, projection_dim=16)
towers("clip", "CLIPModel", "CLIPConfig", text=CLIP, image=dict(IMAGE, projection_dim=16), projection_dim=16)
towers("clip-sdpa", "CLIPModel", "CLIPConfig", "sdpa", text=CLIP, image=dict(IMAGE, projection_dim=16),
       projection_dim=16)  # fmt: skip
towers("chinese-clip", "ChineseCLIPModel", "ChineseCLIPConfig", projection_dim=16)
towers("siglip", "SiglipModel", "SiglipConfig", text=dict(TEXT, projection_size=32))
towers("metaclip2", "MetaClip2Model", "MetaClip2Config", text=CLIP, image=dict(IMAGE, projection_dim=16),
       projection_dim=16)  # fmt: skip
towers("blip", "BlipModel", "BlipConfig", text=dict(TEXT, encoder_hidden_size=32, projection_dim=16),
       image=dict(IMAGE, projection_dim=16), projection_dim=16, image_text_hidden_size=16)  # fmt: skip
towers("groupvit", "GroupViTModel", "GroupViTConfig", text=dict(CLIP),
       image=dict(IMAGE, depths=[1, 1, 1], num_group_tokens=[4, 2, 0], num_output_groups=[4, 2, 2]),
       projection_dim=16, projection_intermediate_dim=32)  # fmt: skip
towers("owlvit", "OwlViTModel", "OwlViTConfig", text=CLIP, projection_dim=16)
towers("align", "AlignModel", "AlignConfig",
       image=dict(num_channels=3, image_size=32, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=32,
                  kernel_sizes=[3, 3], in_channels=[16, 16], out_channels=[16, 32], strides=[1, 2],
                  num_block_repeats=[1, 1], expand_ratios=[1, 2], depthwise_padding=[]),
       projection_dim=8)  # fmt: skip


def patches(b: int, n: int) -> dict[str, Any]:
    """Text, and images as 16 flattened patches each, of which the last row has fewer."""
    held = torch.ones(b, 16, dtype=torch.int32)
    held[-1, 12:] = 0
    shapes = torch.tensor([[4, 4]] * (b - 1) + [[4, 3]])
    return {**text(b, n), "pixel_values": noise(b, 16, 192), "pixel_attention_mask": held,
            "spatial_shapes": shapes}  # fmt: skip


register("siglip2", "multimodal",
         lambda: pretrained("Siglip2Model", "Siglip2Config", text_config=dict(TEXT, projection_size=32),
                            vision_config=dict(WIDTHS, num_patches=16, patch_size=8)),
         patches, (2, 10), (2, 13), {"input_ids": {1: N}, "attention_mask": {1: N}})  # fmt: skip
register("vilt", "multimodal", lambda: pretrained("ViltModel", "ViltConfig", **{**TEXT, **IMAGE}),
         captioned, (2, 10), (3, 13), OPEN)  # fmt: skip


def visual(b: int, n: int) -> dict[str, Any]:
    """Text with five regions of an image as vectors."""
    return {**text(b, n), "visual_embeds": noise(b, 5, 16), "visual_attention_mask": padded(b, 5),
            "visual_token_type_ids": torch.ones(b, 5, dtype=torch.int64)}  # fmt: skip


REGIONS = {"visual_embeds": BATCH, "visual_attention_mask": BATCH, "visual_token_type_ids": BATCH}
register("visual-bert", "multimodal",
         lambda: pretrained("VisualBertModel", "VisualBertConfig", **TEXT, visual_embedding_dim=16),
         visual, (2, 10), (3, 13), {**OPEN, **REGIONS})  # fmt: skip


def regions(b: int, n: int) -> dict[str, Any]:
    """Text with five regions of an image and the boxes they stand in."""
    return {**text(b, n), "visual_feats": noise(b, 5, 16), "visual_pos": noise(b, 5, 4)}


register("lxmert", "multimodal",
         lambda: pretrained("LxmertModel", "LxmertConfig", **TEXT, visual_feat_dim=16, l_layers=1, x_layers=1,
                            r_layers=1),
         regions, (2, 10), (3, 13), {**OPEN, "visual_feats": BATCH, "visual_pos": BATCH})  # fmt: skip
register("flava", "multimodal",
         lambda: pretrained("FlavaModel", "FlavaConfig", text_config=dict(TEXT), image_config=dict(IMAGE),
                            multimodal_config=dict(WIDTHS), hidden_size=32, projection_dim=16),
         captioned, (2, 10), (3, 13), OPEN)  # fmt: skip

LLAMA: dict[str, Any] = dict(TEXT, num_key_value_heads=2, model_type="llama", use_cache=False)
IMAGE_TOKEN = 3


def chat(b: int, n: int) -> dict[str, Any]:
    """Text that begins with the 16 places of an image's patches, and the images."""
    found = captioned(b, n)
    found["input_ids"][:, :16] = IMAGE_TOKEN
    return found


def chatting(name: str, model: str, config: str, attention: str = "eager", b: int = 3, **sizes: Any) -> None:
    """Register a language model that reads images, with b of them the second time; the length is open."""
    words = {1: N} if b == 2 else TOKENS
    axes = {"input_ids": words, "attention_mask": words, "pixel_values": None if b == 2 else BATCH}
    register(name, "multimodal", lambda: pretrained(model, config, attention, **sizes), chat,
             (2, 20), (b, 23), axes)  # fmt: skip


SEES = dict(text_config=LLAMA, image_token_index=IMAGE_TOKEN, image_seq_length=16)
chatting("llava", "LlavaForConditionalGeneration", "LlavaConfig", b=2, **SEES,
         vision_feature_select_strategy="default",
         vision_config=dict(IMAGE, model_type="clip_vision_model"))  # fmt: skip
chatting("llava-sdpa", "LlavaForConditionalGeneration", "LlavaConfig", "sdpa", b=2, **SEES,
         vision_feature_select_strategy="default",
         vision_config=dict(IMAGE, model_type="clip_vision_model"))  # fmt: skip
chatting("vipllava", "VipLlavaForConditionalGeneration", "VipLlavaConfig", **SEES,
         vision_config=dict(IMAGE, model_type="clip_vision_model"),
         vision_feature_layers=[-1, -2])  # fmt: skip
chatting("paligemma", "PaliGemmaForConditionalGeneration", "PaliGemmaConfig", image_token_index=IMAGE_TOKEN,
         text_config=dict(LLAMA, model_type="gemma", head_dim=8), projection_dim=32,
         vision_config=dict(IMAGE, model_type="siglip_vision_model", num_image_tokens=16))  # fmt: skip


def attributed(b: int, n: int) -> dict[str, Any]:
    """Images and the text said about them so far."""
    return {"pixel_values": noise(b, 3, 32, 32), "input_ids": ids(b, n), "attention_mask": padded(b, n)}


register("git", "multimodal",
         lambda: pretrained("GitModel", "GitConfig", **TEXT, vision_config=dict(IMAGE)),
         lambda b, n: {**attributed(b, n), "use_cache": False}, (2, 10), (3, 13), OPEN)  # fmt: skip
register("blip2-qformer", "multimodal",
         lambda: pretrained("Blip2QFormerModel", "Blip2QFormerConfig", **TEXT, encoder_hidden_size=32,
                            cross_attention_frequency=1),
         lambda b, n: {"query_embeds": noise(b, n, 32), "encoder_hidden_states": noise(b, 9, 32),
                       "encoder_attention_mask": padded(b, 9)},
         (2, 6), (3, 8), {"query_embeds": TOKENS, "encoder_hidden_states": BATCH,
                          "encoder_attention_mask": BATCH})  # fmt: skip
