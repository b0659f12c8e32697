"""Models of sound: transformers of waveforms and of spectra, codecs, source separation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.case import tiny

from .inputs import BATCH, TOKENS, WIDTHS, ids, noise, padded, pretrained, register

WAVES: dict[str, Any] = dict(
    WIDTHS, conv_dim=(8, 8), conv_stride=(4, 4), conv_kernel=(8, 8), num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2, vocab_size=32, apply_spec_augment=False, mask_time_prob=0.0,
    num_feat_extract_layers=2,
)  # fmt: skip
SOUND = {0: BATCH[0], 1: TOKENS[1]}


def waves(b: int, n: int) -> dict[str, Any]:
    """`input_values` [b, n]: samples of sound."""
    return {"input_values": noise(b, n)}


def heard(b: int, n: int) -> dict[str, Any]:
    """`waves`, padded: 16 samples less in each row than in the one before it."""
    held = torch.arange(n)[None] < n - 16 * torch.arange(b)[:, None]
    return {"input_values": noise(b, n) * held, "attention_mask": held.long()}


def listener(
    name: str,
    model: str,
    config: str,
    attention: str = "eager",
    inputs: Any = waves,
    more: int = 528,
    **sizes: Any,
) -> None:
    """Register a model of waveforms; the batch is open, and the length where `more` is another."""
    sizes = {**WAVES, **sizes}
    register(name, "audio", lambda: pretrained(model, config, attention, **sizes), inputs,
             (2, 400), (3, more), SOUND if more != 400 else BATCH)  # fmt: skip


listener("wav2vec2", "Wav2Vec2Model", "Wav2Vec2Config")
listener("wav2vec2-sdpa", "Wav2Vec2Model", "Wav2Vec2Config", "sdpa")
listener("wav2vec2-padded", "Wav2Vec2Model", "Wav2Vec2Config", inputs=heard)
listener(
    "wav2vec2-stable", "Wav2Vec2Model", "Wav2Vec2Config", do_stable_layer_norm=True, feat_extract_norm="layer"
)
for kind in ("relative", "rotary"):
    listener(f"wav2vec2-conformer-{kind}", "Wav2Vec2ConformerModel", "Wav2Vec2ConformerConfig",
             more=400 if kind == "rotary" else 528, position_embeddings_type=kind,
             conv_depthwise_kernel_size=3)  # fmt: skip
listener("hubert", "HubertModel", "HubertConfig")
listener("wavlm", "WavLMModel", "WavLMConfig", num_buckets=8, max_bucket_distance=16)
listener("sew", "SEWModel", "SEWConfig", squeeze_factor=2)
listener("sew-d", "SEWDModel", "SEWDConfig", squeeze_factor=2, max_position_embeddings=32, position_buckets=8)
listener("unispeech", "UniSpeechModel", "UniSpeechConfig")
listener("unispeech-sat", "UniSpeechSatModel", "UniSpeechSatConfig")
listener("data2vec-audio", "Data2VecAudioModel", "Data2VecAudioConfig", conv_pos_kernel_size=3)

AST = dict(WIDTHS, patch_size=4, max_length=24, num_mel_bins=16, frequency_stride=4, time_stride=4)
for attention, suffix in (("eager", ""), ("sdpa", "-sdpa")):
    register(f"ast{suffix}", "audio",
             lambda attention=attention: pretrained("ASTModel", "ASTConfig", attention, **AST),
             lambda b: {"input_values": noise(b, 24, 16)}, (2,), (3,))  # fmt: skip


def whisper_encoder() -> nn.Module:
    """The encoder of Whisper alone."""
    whisper = pretrained(
        "WhisperModel", "WhisperConfig", vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
        num_mel_bins=16, max_source_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return whisper.encoder


register(
    "whisper-encoder", "audio", whisper_encoder, lambda b: {"input_features": noise(b, 16, 40)}, (2,), (3,)
)


def mels(b: int, n: int) -> dict[str, Any]:
    """`input_features` [b, n, 16] and a mask."""
    return {"input_features": noise(b, n, 16), "attention_mask": padded(b, n)}


for kind in ("relative_key", "relative", "rotary"):
    register(f"wav2vec2-bert-{kind}", "audio",
             lambda kind=kind: pretrained(
                 "Wav2Vec2BertModel", "Wav2Vec2BertConfig", **WIDTHS, feature_projection_input_dim=16,
                 position_embeddings_type=kind, conv_depthwise_kernel_size=3, left_max_position_embeddings=4,
                 right_max_position_embeddings=2),
             mels, (2, 20), (3, 20 if kind == "rotary" else 24),
             BATCH if kind == "rotary" else TOKENS)  # fmt: skip
register("parakeet", "audio",
         lambda: pretrained("ParakeetEncoder", "ParakeetEncoderConfig", **WIDTHS, num_mel_bins=16,
                            subsampling_factor=4, subsampling_conv_channels=8, conv_kernel_size=3),
         mels, (2, 40), (3, 48), TOKENS)  # fmt: skip
register("encodec", "audio",
         lambda: pretrained("EncodecModel", "EncodecConfig", num_filters=4, num_residual_layers=1,
                            hidden_size=16, codebook_size=16, codebook_dim=16, upsampling_ratios=[4, 2],
                            num_lstm_layers=1, target_bandwidths=[24.0]),
         lambda b, n: {"input_values": noise(b, 1, n)}, (2, 256), (3, 256))  # fmt: skip
register("mimi", "audio",
         lambda: pretrained("MimiModel", "MimiConfig", **WIDTHS, num_filters=4, num_residual_layers=1,
                            codebook_size=16, codebook_dim=8, vector_quantization_hidden_dimension=8,
                            upsampling_ratios=[4, 2], num_quantizers=4, sliding_window=6, head_dim=8,
                            num_key_value_heads=4, frame_rate=1500, sampling_rate=24000, upsample_groups=32),
         lambda b, n: {"input_values": noise(b, 1, n)}, (2, 256), (3, 256))  # fmt: skip
register("dac", "audio",
         lambda: pretrained("DacModel", "DacConfig", encoder_hidden_size=8, downsampling_ratios=[2, 4],
                            decoder_hidden_size=32, n_codebooks=2, codebook_size=16, codebook_dim=4,
                            upsampling_ratios=[4, 2], hidden_size=16),
         lambda b, n: {"input_values": noise(b, 1, n)}, (2, 256), (3, 256))  # fmt: skip
register("clap", "audio",
         lambda: pretrained(
             "ClapModel", "ClapConfig", projection_dim=16,
             text_config=dict(WIDTHS, vocab_size=99, max_position_embeddings=64),
             audio_config=dict(patch_embeds_hidden_size=16, hidden_size=32, depths=[1, 1],
                               num_attention_heads=[2, 2], window_size=4, spec_size=32, num_mel_bins=8,
                               patch_size=2, patch_stride=[2, 2], mlp_ratio=2.0, aff_block_r=4,
                               enable_fusion=False)),
         lambda b: {"input_ids": ids(b, 10), "attention_mask": padded(b, 10),
                    "input_features": noise(b, 1, 128, 8)}, (2,), (3,))  # fmt: skip


# ---- Conv-TasNet ---------------------------------------------------------------------------------


class GlobalNorm(nn.Module):
    """gLN: normalised over channels and time of a whole utterance."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(channels, 1)), nn.Parameter(torch.zeros(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [b, c, t]."""
        mean = x.mean((1, 2), keepdim=True)
        variance = (x - mean).square().mean((1, 2), keepdim=True)
        return (x - mean) / (variance + 1e-8).sqrt() * self.gain + self.bias


class CumulativeNorm(GlobalNorm):
    """cLN: normalised over channels and the time so far, for causal separation."""

    def forward(self, x: Tensor) -> Tensor:
        """x [b, c, t]."""
        count = x.shape[1] * torch.arange(1, x.shape[2] + 1, dtype=x.dtype, device=x.device)
        mean = x.sum(1, keepdim=True).cumsum(2) / count
        square = x.square().sum(1, keepdim=True).cumsum(2) / count
        return (x - mean) / (square - mean.square() + 1e-8).sqrt() * self.gain + self.bias


class Block(nn.Module):
    """1 x 1 convolution, PReLU, norm, dilated depthwise convolution, PReLU, norm, two 1 x 1 outputs."""

    def __init__(self, narrow: int, wide: int, kernel: int, dilation: int, causal: bool):
        super().__init__()
        norm = CumulativeNorm if causal else GlobalNorm
        reach = (kernel - 1) * dilation
        self.pad = (reach, 0) if causal else (reach // 2, reach - reach // 2)
        self.rise = nn.Sequential(nn.Conv1d(narrow, wide, 1), nn.PReLU(), norm(wide))
        self.depthwise = nn.Conv1d(wide, wide, kernel, dilation=dilation, groups=wide)
        self.after = nn.Sequential(nn.PReLU(), norm(wide))
        self.residual, self.skip = nn.Conv1d(wide, narrow, 1), nn.Conv1d(wide, narrow, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [b, narrow, t] onward, and what it adds to the sum of all blocks."""
        y = self.after(self.depthwise(F.pad(self.rise(x), self.pad)))
        return x + self.residual(y), self.skip(y)


class ConvTasNet(nn.Module):
    """Conv-TasNet (arXiv:1809.07454): learnt frames of the mixture, a mask for each source, overlap-add."""

    def __init__(self, sources: int = 2, basis: int = 16, frame: int = 8, causal: bool = False):
        super().__init__()
        self.sources, norm = sources, CumulativeNorm if causal else GlobalNorm
        self.encoder = nn.Conv1d(1, basis, frame, stride=frame // 2, bias=False)
        self.bottleneck = nn.Sequential(norm(basis), nn.Conv1d(basis, 8, 1))
        dilations = [2**i for _ in range(2) for i in range(3)]
        self.blocks = nn.ModuleList(Block(8, 16, 3, d, causal) for d in dilations)
        self.mask = nn.Sequential(nn.PReLU(), nn.Conv1d(8, sources * basis, 1))
        self.decoder = nn.ConvTranspose1d(basis, 1, frame, stride=frame // 2, bias=False)

    def forward(self, mixture: Tensor) -> Tensor:
        """A mixture [b, n] as its sources [b, sources, n]; n is a multiple of half a frame."""
        frames = F.relu(self.encoder(mixture[:, None]))
        x, total = self.bottleneck(frames), torch.zeros((), dtype=mixture.dtype)
        for block in self.blocks:
            x, skip = block(x)
            total = total + skip
        b, basis, t = frames.shape
        masks = torch.sigmoid(self.mask(total)).view(b, self.sources, basis, t)
        heard = (masks * frames[:, None]).view(b * self.sources, basis, t)
        return self.decoder(heard).view(b, self.sources, -1)


for causal, norm in ((False, "gln"), (True, "cln")):
    register(f"conv-tasnet-{norm}", "audio", lambda causal=causal: tiny(lambda: ConvTasNet(causal=causal)),
             lambda b, n: {"mixture": noise(b, n)}, (2, 160), (3, 200), TOKENS)  # fmt: skip
