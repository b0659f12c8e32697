"""Encoders with decoders: text, and speech to text."""

from __future__ import annotations

from typing import Any

import torch

from .inputs import BATCH, TOKENS, ids, noise, padded, pretrained, register

BART: dict[str, Any] = dict(
    vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
)  # fmt: skip
T5: dict[str, Any] = dict(
    vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
    relative_attention_num_buckets=8, decoder_start_token_id=0,
)  # fmt: skip


def translation(b: int, n: int, m: int) -> dict[str, Any]:
    """A padded source of n tokens and a target of m."""
    return {
        "input_ids": ids(b, n), "attention_mask": padded(b, n), "decoder_input_ids": ids(b, m),
        "use_cache": False,
    }  # fmt: skip


OPEN = dict.fromkeys(("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"), TOKENS)


def whole(b: int, n: int, m: int) -> dict[str, Any]:
    """`translation` without padding."""
    found = translation(b, n, m)
    return {**found, "attention_mask": torch.ones_like(found["attention_mask"])}


def masked(b: int, n: int, m: int) -> dict[str, Any]:
    """`translation` with a mask of the target, without which some models look for padding themselves."""
    return {**translation(b, n, m), "decoder_attention_mask": torch.ones(b, m, dtype=torch.int64)}


def seq2seq(
    name: str, model: str, config: str, attention: str = "eager", base: dict[str, Any] = BART, n: int = 10,
    more: int = 13, inputs: Any = translation, **sizes: Any,
) -> None:  # fmt: skip
    """Register a text model on a source and a target, and on longer ones with every length open."""
    sizes = {**base, **sizes}
    axes = dict.fromkeys(OPEN, BATCH) if n == more else OPEN
    register(name, "seq2seq", lambda: pretrained(model, config, attention, **sizes), inputs,
             (2, n, 7), (3, more, 7 if n == more else 9), axes)  # fmt: skip


seq2seq("t5", "T5Model", "T5Config", base=T5)
seq2seq("t5-sdpa", "T5Model", "T5Config", "sdpa", base=T5)
seq2seq("mt5-lm", "MT5ForConditionalGeneration", "MT5Config", base=T5)
seq2seq("umt5", "UMT5Model", "UMT5Config", base=T5)
seq2seq("switch", "SwitchTransformersModel", "SwitchTransformersConfig", base=T5, num_experts=4,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, expert_capacity=64)  # fmt: skip
seq2seq("longt5-local", "LongT5Model", "LongT5Config", base=T5, n=16, more=16, inputs=whole, local_radius=3)
seq2seq("longt5-global", "LongT5Model", "LongT5Config", base=T5, n=16, more=16, local_radius=3,
        global_block_size=4, encoder_attention_type="transient-global")  # fmt: skip
seq2seq("bart", "BartModel", "BartConfig")
seq2seq("bart-sdpa", "BartModel", "BartConfig", "sdpa")
seq2seq("mbart", "MBartModel", "MBartConfig")
seq2seq("marian", "MarianModel", "MarianConfig", pad_token_id=1, decoder_start_token_id=2)
seq2seq("pegasus", "PegasusModel", "PegasusConfig")
seq2seq("pegasus-x", "PegasusXModel", "PegasusXConfig", n=16, more=16, block_size=4, num_global_tokens=2)
seq2seq("bigbird-pegasus", "BigBirdPegasusModel", "BigBirdPegasusConfig", attention_type="original_full")
seq2seq("blenderbot", "BlenderbotModel", "BlenderbotConfig")
seq2seq("blenderbot-small", "BlenderbotSmallModel", "BlenderbotSmallConfig")
seq2seq("m2m100", "M2M100Model", "M2M100Config")
seq2seq("nllb-moe", "NllbMoeModel", "NllbMoeConfig", num_experts=4, encoder_sparse_step=2,
        decoder_sparse_step=2)  # fmt: skip
seq2seq("plbart", "PLBartModel", "PLBartConfig")
seq2seq("mvp", "MvpModel", "MvpConfig")
seq2seq("led", "LEDModel", "LEDConfig", n=16, more=16, attention_window=4, max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=64)  # fmt: skip
seq2seq("fsmt", "FSMTModel", "FSMTConfig", inputs=masked, src_vocab_size=99, tgt_vocab_size=99,
        langs=["en", "de"])  # fmt: skip
seq2seq("prophetnet", "ProphetNetModel", "ProphetNetConfig", base={}, vocab_size=99, hidden_size=32,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_encoder_layers=2, num_decoder_layers=2,
        num_encoder_attention_heads=4, num_decoder_attention_heads=4, max_position_embeddings=64,
        ngram=2, num_buckets=8, relative_max_distance=16)  # fmt: skip


def speech(b: int, frames: int, m: int) -> dict[str, Any]:
    """Log-mel features [b, 16, frames] and a target of m tokens."""
    return {"input_features": noise(b, 16, frames), "decoder_input_ids": ids(b, m), "use_cache": False}


def features(b: int, frames: int, m: int) -> dict[str, Any]:
    """Features [b, frames, 16] with a mask, and a target of m tokens."""
    mask = padded(b, frames)
    return {"input_features": noise(b, frames, 16), "attention_mask": mask, "decoder_input_ids": ids(b, m),
            "use_cache": False}  # fmt: skip


WHISPER: dict[str, Any] = dict(
    BART, num_mel_bins=16, max_source_positions=20, max_target_positions=32, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
)  # fmt: skip
SPEECH = {"input_features": BATCH, "decoder_input_ids": TOKENS}
for attention, suffix in (("eager", ""), ("sdpa", "-sdpa")):
    register(f"whisper{suffix}", "seq2seq",
             lambda attention=attention: pretrained("WhisperModel", "WhisperConfig", attention, **WHISPER),
             speech, (2, 40, 7), (3, 40, 9), SPEECH)  # fmt: skip
register("speech-to-text", "seq2seq",
         lambda: pretrained("Speech2TextModel", "Speech2TextConfig", **BART, input_feat_per_channel=16,
                            max_source_positions=64, max_target_positions=64, num_conv_layers=2,
                            conv_kernel_sizes=(3, 3), conv_channels=32),
         features, (2, 40, 7), (3, 48, 9), {"input_features": TOKENS, "attention_mask": TOKENS,
                                            "decoder_input_ids": TOKENS})  # fmt: skip
