"""Models of time series."""

from __future__ import annotations

from typing import Any

import torch

from .inputs import BATCH, noise, pretrained, register


def channels(b: int, n: int) -> dict[str, Any]:
    """`past_values` [b, n, 3] of three channels."""
    return {"past_values": noise(b, n, 3)}


PATCHES: dict[str, Any] = dict(
    num_input_channels=3, context_length=32, patch_length=4, patch_stride=4, d_model=16, num_hidden_layers=2,
    num_attention_heads=4, ffn_dim=32, prediction_length=8,
)  # fmt: skip
register("patchtst", "time-series",
         lambda: pretrained("PatchTSTForPrediction", "PatchTSTConfig", **PATCHES, do_mask_input=False,
                            loss="mse"),
         channels, (2, 32), (3, 32))  # fmt: skip
register("patchtst-channels", "time-series",
         lambda: pretrained("PatchTSTModel", "PatchTSTConfig", **PATCHES, do_mask_input=False,
                            channel_attention=True, use_cls_token=True),
         channels, (2, 32), (3, 32))  # fmt: skip
register("patchtsmixer", "time-series",
         lambda: pretrained("PatchTSMixerForPrediction", "PatchTSMixerConfig", **{**PATCHES, "num_layers": 2},
                            self_attn=True, self_attn_heads=4, mode="mix_channel", loss="mse"),
         channels, (2, 32), (3, 32))  # fmt: skip


def forecast(b: int, n: int) -> dict[str, Any]:
    """A series with gaps, its features, and those of the time to come."""
    past, ahead = n + 3, 4
    seen = torch.ones(b, past)
    seen[:, 2::5] = 0
    return {
        "past_values": noise(b, past), "past_time_features": noise(b, past, 2), "past_observed_mask": seen,
        "future_values": noise(b, ahead), "future_time_features": noise(b, ahead, 2),
        "static_categorical_features": torch.arange(b)[:, None] % 3, "use_cache": False,
    }  # fmt: skip


SERIES: dict[str, Any] = dict(
    prediction_length=4, context_length=16, lags_sequence=[1, 2, 3], num_time_features=2,
    num_static_categorical_features=1, cardinality=[3], embedding_dimension=[2], d_model=32, encoder_layers=2,
    decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
    decoder_ffn_dim=48, scaling="mean",
)  # fmt: skip
for name, model, config, more in (
    ("time-series-transformer", "TimeSeriesTransformerModel", "TimeSeriesTransformerConfig", {}),
    ("informer", "InformerModel", "InformerConfig", {"sampling_factor": 2, "distil": False}),
    ("informer-full", "InformerModel", "InformerConfig", {"attention_type": "full", "distil": False}),
    (
        "autoformer",
        "AutoformerModel",
        "AutoformerConfig",
        {"d_model": 64, "label_length": 12, "moving_average": 5},
    ),
):
    register(name, "time-series",
             lambda model=model, config=config, more=more: pretrained(model, config, **{**SERIES, **more}),
             forecast, (2, 16), (3, 16), BATCH)  # fmt: skip
