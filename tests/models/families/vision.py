"""Models of images and of video: transformers of patches, pyramids, detectors, segmenters."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim

from .inputs import BATCH, WIDTHS, noise, pretrained, register

PATCHES: dict[str, Any] = dict(WIDTHS, image_size=32, patch_size=8, num_channels=3)
PYRAMID: dict[str, Any] = dict(
    hidden_sizes=[16, 32], num_attention_heads=[1, 2], depths=[1, 1], sr_ratios=[2, 1],
    patch_sizes=[4, 2], strides=[4, 2], mlp_ratios=[2, 2], num_encoder_blocks=2,
)  # fmt: skip
WINDOWS: dict[str, Any] = dict(
    image_size=32, patch_size=2, num_channels=3, embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4,
)  # fmt: skip


def images(b: int, size: int) -> dict[str, Any]:
    """`pixel_values` [b, 3, size, size]."""
    return {"pixel_values": noise(b, 3, size, size)}


def video(b: int, frames: int, size: int) -> dict[str, Any]:
    """`pixel_values` [b, frames, 3, size, size]."""
    return {"pixel_values": noise(b, frames, 3, size, size)}


def vision(
    name: str, model: str, config: str, attention: str = "eager", base: dict[str, Any] = PATCHES,
    size: int = 32, more: int = 32, **sizes: Any,
) -> None:  # fmt: skip
    """Register a model of images, and the batch open; the size too where `more` is another."""
    sizes = {**base, **sizes}
    axes = BATCH if more == size else {**BATCH, 2: Dim.AUTO, 3: Dim.AUTO}
    register(name, "vision", lambda: pretrained(model, config, attention, **sizes), images,
             (2, size), (3, more), axes)  # fmt: skip


vision("vit", "ViTModel", "ViTConfig")
vision("vit-sdpa", "ViTModel", "ViTConfig", "sdpa")
vision("deit", "DeiTModel", "DeiTConfig")
vision("beit", "BeitModel", "BeitConfig", use_relative_position_bias=True)
vision("data2vec-vision", "Data2VecVisionModel", "Data2VecVisionConfig",
       use_shared_relative_position_bias=True)  # fmt: skip
vision("ijepa", "IJepaModel", "IJepaConfig")
vision("vit-mae", "ViTMAEModel", "ViTMAEConfig", mask_ratio=0.0)
vision("vit-msn", "ViTMSNModel", "ViTMSNConfig")
vision("vitdet", "VitDetModel", "VitDetConfig", pretrain_image_size=32, window_block_indices=[0],
       window_size=2, residual_block_indices=[], use_relative_position_embeddings=True)  # fmt: skip
vision("dinov2", "Dinov2Model", "Dinov2Config")
vision("dinov2-registers", "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", num_register_tokens=2)
vision("dinov3", "DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=2, more=48)
vision("dinov3-sdpa", "DINOv3ViTModel", "DINOv3ViTConfig", "sdpa", num_register_tokens=2, more=48)
vision("aimv2", "Aimv2VisionModel", "Aimv2VisionConfig")
vision("hiera", "HieraModel", "HieraConfig", base={}, embed_dim=8, image_size=[32, 32], patch_stride=[4, 4],
       depths=[1, 1], num_heads=[1, 2], query_stride=[2, 2], num_query_pool=1, masked_unit_size=[4, 4],
       masked_unit_attention=[True, False])  # fmt: skip
vision("swin", "SwinModel", "SwinConfig", base=WINDOWS)
vision("swin-sdpa", "SwinModel", "SwinConfig", "sdpa", base=WINDOWS)
vision("swinv2", "Swinv2Model", "Swinv2Config", base=WINDOWS)
vision("swin2sr", "Swin2SRModel", "Swin2SRConfig", base={**WINDOWS, "patch_size": 1, "image_size": 16},
       size=16, more=16)  # fmt: skip
vision("donut-swin", "DonutSwinModel", "DonutSwinConfig", base=WINDOWS)
vision("segformer", "SegformerModel", "SegformerConfig", base=PYRAMID, more=64)
vision("glpn", "GLPNForDepthEstimation", "GLPNConfig", base={}, size=64, more=64, decoder_hidden_size=16,
       hidden_sizes=[8, 16, 16, 32], num_attention_heads=[1, 2, 2, 4], depths=[1, 1, 1, 1])  # fmt: skip
vision("pvt", "PvtModel", "PvtConfig", base=PYRAMID, image_size=32, sequence_reduction_ratios=[2, 1])
vision("pvt-v2", "PvtV2Model", "PvtV2Config", base=PYRAMID, image_size=32)
vision("cvt", "CvtModel", "CvtConfig", base={}, embed_dim=[16, 32, 32], num_heads=[1, 2, 4], depth=[1, 2, 3],
       patch_sizes=[3, 3, 3], patch_stride=[2, 2, 2], patch_padding=[1, 1, 1])  # fmt: skip
vision("levit", "LevitModel", "LevitConfig", base={}, image_size=64, size=64, more=64,
       hidden_sizes=[16, 32, 32], num_attention_heads=[2, 2, 4], depths=[1, 1, 1], key_dim=[8, 8, 8],
       attention_ratio=[2, 2, 2], mlp_ratio=[2, 2, 2])  # fmt: skip
vision("poolformer", "PoolFormerModel", "PoolFormerConfig", base={}, hidden_sizes=[8, 16, 16, 32],
       depths=[1, 1, 1, 1], size=64, more=64)  # fmt: skip
vision("swiftformer", "SwiftFormerModel", "SwiftFormerConfig", base={}, depths=[1, 1, 1, 1],
       embed_dims=[8, 16, 16, 32], size=64, more=96)  # fmt: skip
MOBILE = dict(image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[4, 8, 16, 16, 24, 32, 64],
              num_attention_heads=2)  # fmt: skip
vision("mobilevit", "MobileViTModel", "MobileViTConfig", base=MOBILE, size=64, more=64)
vision("mobilevitv2", "MobileViTV2Model", "MobileViTV2Config", base={}, image_size=64, size=64, more=64,
       width_multiplier=0.25, n_attn_blocks=[1, 1, 1])  # fmt: skip
vision("focalnet", "FocalNetModel", "FocalNetConfig", base={}, image_size=32, embed_dim=8,
       depths=[1, 1], hidden_sizes=[8, 16], focal_levels=[1, 1], focal_windows=[3, 3])  # fmt: skip
vision("convnextv2", "ConvNextV2Model", "ConvNextV2Config", base={}, hidden_sizes=[8, 16], depths=[1, 1],
       num_stages=2, more=64)  # fmt: skip
vision("dpt", "DPTForDepthEstimation", "DPTConfig", num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3],
       neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8, is_hybrid=False,
       reassemble_factors=[4, 2, 1, 0.5])  # fmt: skip
vision("yolos", "YolosForObjectDetection", "YolosConfig", image_size=[32, 32], num_detection_tokens=4,
       num_labels=5)  # fmt: skip
vision("pixio", "PixioModel", "PixioConfig")

DETR: dict[str, Any] = dict(
    d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=6, num_labels=5, use_timm_backbone=False,
    use_pretrained_backbone=False, backbone=None,
)  # fmt: skip


def small_resnet() -> Any:
    """A convolutional backbone for detectors."""
    from transformers import ResNetConfig

    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1],
                        out_features=["stage4"])  # fmt: skip


def detector(name: str, model: str, config: str, attention: Any = "eager", **sizes: Any) -> None:
    """Register a detector on a small convolutional backbone, the batch open."""

    def make() -> Any:
        return pretrained(model, config, attention, **DETR, backbone_config=small_resnet(), **sizes)

    register(name, "vision", make, images, (2, 64), (3, 64), BATCH)


detector("detr", "DetrForObjectDetection", "DetrConfig")
detector("detr-sdpa", "DetrForObjectDetection", "DetrConfig", {"": "sdpa", "backbone_config": "eager"})
detector("conditional-detr", "ConditionalDetrForObjectDetection", "ConditionalDetrConfig")
detector("table-transformer", "TableTransformerForObjectDetection", "TableTransformerConfig")
detector("dab-detr", "DabDetrForObjectDetection", "DabDetrConfig", hidden_size=32)
detector("deformable-detr", "DeformableDetrForObjectDetection", "DeformableDetrConfig", num_feature_levels=1)


def rt_detr() -> Any:
    """RT-DETR on a backbone of its own."""
    from transformers import RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return pretrained(
        "RTDetrForObjectDetection", "RTDetrConfig", backbone_config=backbone, encoder_hidden_dim=32,
        encoder_in_channels=[16, 24, 32], feat_strides=[8, 16, 32], encoder_ffn_dim=48,
        encoder_attention_heads=4, d_model=32, num_queries=6, decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=48, decoder_layers=2, decoder_attention_heads=4, num_feature_levels=3,
        num_labels=5, anchor_image_size=None, use_pretrained_backbone=False, num_denoising=0,
        freeze_backbone_batch_norms=False,
    )  # fmt: skip


register("rt-detr", "vision", rt_detr, images, (2, 64))


def sam_vision(attention: str) -> Any:
    """The image encoder of SAM: windows, one global layer, decomposed relative positions."""
    return pretrained(
        "SamVisionModel", "SamVisionConfig", attention, **PATCHES, output_channels=16, window_size=2,
        global_attn_indexes=[1], use_rel_pos=True, mlp_dim=48, num_pos_feats=8,
    )  # fmt: skip


register("sam-vision", "vision", lambda: sam_vision("eager"), images, (2, 32), (3, 32), BATCH)
register("sam-vision-sdpa", "vision", lambda: sam_vision("sdpa"), images, (2, 32), (3, 32), BATCH)


def sam() -> Any:
    """SAM with its prompt encoder and mask decoder."""
    vision_config = dict(PATCHES, output_channels=16, window_size=2, global_attn_indexes=[1], mlp_dim=48,
                         num_pos_feats=8)  # fmt: skip
    prompt = dict(hidden_size=16, image_size=32, patch_size=8, mask_input_channels=4)
    decoder = dict(hidden_size=16, mlp_dim=24, num_hidden_layers=2, num_attention_heads=2,
                   iou_head_hidden_dim=16)  # fmt: skip
    return pretrained("SamModel", "SamConfig", vision_config=vision_config, prompt_encoder_config=prompt,
                      mask_decoder_config=decoder)  # fmt: skip


def prompted(b: int, points: int) -> dict[str, Any]:
    """Images [b, 3, 32, 32] and points on them."""
    return {**images(b, 32), "input_points": noise(b, 1, points, 2).abs() * 9,
            "input_labels": torch.ones(b, 1, points, dtype=torch.int64)}  # fmt: skip


register("sam", "vision", sam, prompted, (2, 2), (3, 2), BATCH)


def frames(b: int, t: int, size: int) -> dict[str, Any]:
    """`pixel_values_videos` [b, t, 3, size, size], through the encoder alone."""
    return {"pixel_values_videos": noise(b, t, 3, size, size), "skip_predictor": True}


def clips(
    name: str, model: str, config: str, attention: str = "eager", inputs: Any = video, **sizes: Any
) -> None:
    """Register a model of video, the batch open."""
    sizes = {**PATCHES, "num_frames": 4, **sizes}
    register(name, "vision", lambda: pretrained(model, config, attention, **sizes), inputs,
             (2, 4, 32), (3, 4, 32), BATCH)  # fmt: skip


clips("videomae", "VideoMAEModel", "VideoMAEConfig")
clips("timesformer", "TimesformerModel", "TimesformerConfig")
clips("vjepa2", "VJEPA2Model", "VJEPA2Config", inputs=frames, crop_size=32, frames_per_clip=4,
      pred_hidden_size=16, pred_num_attention_heads=4, pred_num_hidden_layers=1)  # fmt: skip
clips("vivit", "VivitModel", "VivitConfig", tubelet_size=[2, 8, 8])
