"""Text encoders of transformers."""

from __future__ import annotations

from typing import Any

from .inputs import BATCH, TOKENS, WIDTHS, ids, pretrained, register, text

WORDS: dict[str, Any] = dict(WIDTHS, vocab_size=99, max_position_embeddings=64, pad_token_id=1)


def encoder(
    name: str, model: str, config: str, attention: str = "eager", n: int = 12, more: int | None = 17,
    base: dict[str, Any] = WORDS, inputs: Any = text, **sizes: Any,
) -> None:  # fmt: skip
    """Register an encoder on padded rows of n tokens, and on rows of `more` with the length open.

    The batch is open in both; the length is not where n is `more`; nothing is where that is None.
    """
    axes = BATCH if n == more else TOKENS
    sizes = {**base, **sizes}
    register(name, "encoder", lambda: pretrained(model, config, attention, **sizes), inputs,
             (2, n), more and (3, more), axes)  # fmt: skip


def one_pass(b: int, n: int) -> dict[str, Any]:
    """`text`, and nothing kept for a next call."""
    return {**text(b, n), "use_cache": False}


def no_memory(b: int, n: int) -> dict[str, Any]:
    """`text`, and nothing remembered for a next segment."""
    return {**text(b, n), "use_mems": False}


def words(b: int, n: int) -> dict[str, Any]:
    """`input_ids` [b, n] alone, for models that have no mask."""
    return {"input_ids": ids(b, n)}


encoder("bert", "BertModel", "BertConfig")
encoder("bert-sdpa", "BertModel", "BertConfig", "sdpa")
encoder("roberta", "RobertaModel", "RobertaConfig")
encoder("xlm-roberta", "XLMRobertaModel", "XLMRobertaConfig", "sdpa")
encoder("roberta-prelayernorm", "RobertaPreLayerNormModel", "RobertaPreLayerNormConfig")
encoder("data2vec-text", "Data2VecTextModel", "Data2VecTextConfig")
encoder("bert-generation", "BertGenerationEncoder", "BertGenerationConfig")
encoder("electra", "ElectraModel", "ElectraConfig", embedding_size=16)
encoder("albert", "AlbertModel", "AlbertConfig", embedding_size=16)
encoder("distilbert", "DistilBertModel", "DistilBertConfig", dim=32, n_layers=2, n_heads=4, hidden_dim=48)
encoder("distilbert-sdpa", "DistilBertModel", "DistilBertConfig", "sdpa", dim=32, n_layers=2, n_heads=4,
        hidden_dim=48)  # fmt: skip
encoder("mobilebert", "MobileBertModel", "MobileBertConfig", embedding_size=16, intra_bottleneck_size=16,
        num_feedforward_networks=2)  # fmt: skip
encoder("megatron-bert", "MegatronBertModel", "MegatronBertConfig")
encoder("rembert", "RemBertModel", "RemBertConfig", input_embedding_size=16)
encoder("mpnet", "MPNetModel", "MPNetConfig")
encoder("deberta", "DebertaModel", "DebertaConfig", relative_attention=True, pos_att_type=["c2p", "p2c"],
        position_biased_input=False)  # fmt: skip
encoder("deberta-v2", "DebertaV2Model", "DebertaV2Config", relative_attention=True, share_att_key=True,
        pos_att_type=["p2c", "c2p"], position_buckets=8, norm_rel_ebd="layer_norm")  # fmt: skip
encoder("modernbert", "ModernBertModel", "ModernBertConfig", num_hidden_layers=3, local_attention=8)
encoder("modernbert-sdpa", "ModernBertModel", "ModernBertConfig", "sdpa", num_hidden_layers=3,
        local_attention=8)  # fmt: skip
encoder("nomic-bert", "NomicBertModel", "NomicBertConfig")
encoder("eurobert", "EuroBertModel", "EuroBertConfig", num_key_value_heads=2)
encoder("jina-v3", "JinaEmbeddingsV3Model", "JinaEmbeddingsV3Config")
encoder("esm", "EsmModel", "EsmConfig", position_embedding_type="rotary", mask_token_id=3)
encoder("roformer", "RoFormerModel", "RoFormerConfig", embedding_size=32)
encoder("ibert", "IBertModel", "IBertConfig")
encoder("convbert", "ConvBertModel", "ConvBertConfig", embedding_size=32, head_ratio=2, conv_kernel_size=3)
encoder("squeezebert", "SqueezeBertModel", "SqueezeBertConfig", embedding_size=32, q_groups=2, k_groups=2,
        v_groups=2, post_attention_groups=1, intermediate_groups=2, output_groups=2)  # fmt: skip
encoder("layoutlm", "LayoutLMModel", "LayoutLMConfig")
encoder("lilt", "LiltModel", "LiltConfig", hidden_size=48, channel_shrink_ratio=2,
        max_2d_position_embeddings=64)  # fmt: skip
encoder("xlnet", "XLNetModel", "XLNetConfig", base={}, inputs=no_memory, vocab_size=99, d_model=32,
        n_layer=2, n_head=4, d_inner=48)  # fmt: skip
encoder("xlm", "XLMModel", "XLMConfig", emb_dim=32, n_layers=2, n_heads=4, n_langs=1, use_lang_emb=False)
encoder("fnet", "FNetModel", "FNetConfig", inputs=words)
encoder("nystromformer", "NystromformerModel", "NystromformerConfig", n=16, more=16, inputs=words,
        num_landmarks=4, segment_means_seq_len=16, conv_kernel_size=3)  # fmt: skip
encoder("yoso", "YosoModel", "YosoConfig", use_expectation=True)
encoder("funnel", "FunnelModel", "FunnelConfig", n=16, more=16, base={}, vocab_size=99, block_sizes=[1, 1],
        num_decoder_layers=1, d_model=32, n_head=4, d_head=8, d_inner=48)  # fmt: skip
encoder("longformer", "LongformerModel", "LongformerConfig", n=16, more=24, attention_window=4)
encoder("bigbird-full", "BigBirdModel", "BigBirdConfig", attention_type="original_full")
encoder("bigbird-sparse", "BigBirdModel", "BigBirdConfig", n=64, more=64, max_position_embeddings=128,
        block_size=4, num_random_blocks=2)  # fmt: skip
encoder("reformer", "ReformerModel", "ReformerConfig", n=16, more=None, inputs=one_pass,
        attention_head_size=8, axial_pos_shape=[4, 4], axial_pos_embds_dim=[16, 16],
        attn_layers=["local", "local"], local_attn_chunk_length=4, feed_forward_size=48,
        is_decoder=False)  # fmt: skip
encoder("canine", "CanineModel", "CanineConfig", n=32, more=32, num_hash_buckets=64,
        local_transformer_stride=16, downsampling_rate=4)  # fmt: skip
encoder("mra", "MraModel", "MraConfig", n=64, more=64, max_position_embeddings=128)
encoder("xmod", "XmodModel", "XmodConfig", languages=["en"], default_language="en")
encoder("splinter", "SplinterModel", "SplinterConfig")

T5 = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, relative_attention_num_buckets=8)
encoder("t5-encoder", "T5EncoderModel", "T5Config", **T5)
encoder("mt5-encoder", "MT5EncoderModel", "MT5Config", **T5)
encoder("umt5-encoder", "UMT5EncoderModel", "UMT5Config", **T5)
encoder("t5-encoder-sdpa", "T5EncoderModel", "T5Config", "sdpa", **T5)
