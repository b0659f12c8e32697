"""A tiny config of any Hugging Face model, made from its default one by the names of its fields."""

from __future__ import annotations

from typing import Any

SMALL: dict[int, str] = {
    1: "n_group topk_group num_expert_group n_groups mamba_n_groups mamba_ngroups n_shared_experts",
    2: "num_hidden_layers num_layers n_layer n_layers decoder_layers encoder_layers num_decoder_layers "
       "num_encoder_layers num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k depth",
    4: "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
       "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads num_experts "
       "n_routed_experts num_local_experts moe_num_experts sliding_window sliding_window_size "
       "linear_num_key_heads linear_num_value_heads linear_num_heads index_n_heads local_attention "
       "attention_window_size window_size index_topk attention_chunk_size",
    8: "head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim linear_key_head_dim linear_value_head_dim "
       "linear_head_dim index_head_dim mamba_d_head mamba_d_state state_size ssm_state_size d_head dim_head "
       "d_kv kv_channels global_head_dim rotary_dim mamba_head_dim mamba_headdim mamba_n_heads",
    16: "q_lora_rank kv_lora_rank qk_head_dim",
    32: "hidden_size d_model n_embd dim emb_dim embedding_size embedding_dim word_embed_proj_dim "
        "cross_attention_hidden_size",
    64: "intermediate_size moe_intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim d_inner n_inner "
        "shared_expert_intermediate_size shared_intermediate_size ffn_hidden_size d_ff feed_forward_size "
        "moe_shared_expert_intermediate_size expert_ffn_hidden_size dense_intermediate_size",
    99: "vocab_size decoder_vocab_size",
    128: "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length",
}  # fmt: skip

SIZES = {name: size for size, names in SMALL.items() for name in names.split()}
KEY_HEADS = {
    "num_key_value_heads": "num_attention_heads", "num_kv_heads": "num_attention_heads",
    "kv_n_heads": "n_heads", "num_query_groups": "num_attention_heads",
}  # fmt: skip
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers")


GIVEN: dict[str, dict[str, Any]] = {
    "bamba": dict(mamba_n_heads=8, attn_layer_indices=[1]),
    "blt": dict(encoder_hash_byte_group_vocab=101),
    "blt_local_encoder": dict(hidden_size_global=32), "blt_local_decoder": dict(hidden_size_global=32),
    "cohere_compass_text": dict(
        rope_parameters={
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
            for kind in ("full_attention", "sliding_attention")
        },
    ),
    "dbrx": dict(attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4)),
    "deepseek_v2": dict(num_experts_per_tok=2),
    "dots1": dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2),
    "dots3_note_text": dict(
        shared_experts_intermediate_size=64, layer_types=["indexed_attention", "sliding_attention"],
        num_hidden_layers=2, mlp_layer_types=["dense", "sparse"], per_layer_config={1: dict(head_dim=16)},
    ),
    "gemma3n_text": dict(
        num_kv_shared_layers=0, vocab_size_per_layer_input=99, hidden_size_per_layer_input=8, laurel_rank=8,
        layer_types=["sliding_attention", "full_attention"], num_hidden_layers=2,
        intermediate_size=[64, 64], activation_sparsity_pattern=[0.5, 0.0],
    ),
    "gemma4_text": dict(vocab_size_per_layer_input=99, hidden_size_per_layer_input=8),
    "granitemoehybrid": dict(mamba_n_heads=8),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "lfm2_moe": dict(
        layer_types=["conv", "full_attention"], num_hidden_layers=2, num_dense_layers=1, head_dim=8,
    ),
    "mamba2": dict(num_heads=8),
    "musicgen_decoder": dict(num_codebooks=1), "musicgen_melody_decoder": dict(num_codebooks=1),
    "qwen4_exp_text": dict(
        indexer_n_heads=4, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8,
        indexer_compress_ratio=4, ngram_vocab_size_base=101, split_ngram_parts=4,
    ),
    "recurrent_gemma": dict(num_hidden_layers=3),
    "reformer": dict(
        is_decoder=True, axial_pos_embds=False, attn_layers=["local", "lsh"], local_attn_chunk_length=4,
        lsh_attn_chunk_length=4, num_buckets=2, num_attention_heads=4, attention_head_size=8,
    ),
    "roc_bert": dict(pronunciation_vocab_size=20, shape_vocab_size=20),
    "xlnet": dict(use_mems_eval=False),
    "xmod": dict(default_language="en_XX"),
    "zamba": dict(layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], num_hidden_layers=4),
}  # fmt: skip
"""Fields that the names alone do not settle, by model type."""


def shrunk(config_class: type, **given: Any) -> Any:
    """A small config: two layers, four heads, width 32; `given` goes before what is found.

    A list with one entry a layer keeps an entry of each kind, and there are as many layers. A window
    that the default has is four places wide, so that it masks. Fewer key heads stay fewer.
    Raises whatever the config raises for sizes that do not fit.
    """
    given = GIVEN.get(config_class.model_type, {}) | given
    default = vars(config_class())
    depth = next((default[k] for k in LAYERS if isinstance(default.get(k), int)), None)
    lists = {k: v for k, v in default.items() if isinstance(v, (list, tuple)) and depth and len(v) == depth}
    kept = _one_of_each(lists, depth)
    values: dict[str, Any] = {}
    token = 98
    for name, value in default.items():
        if name.startswith("_"):
            continue
        if hasattr(value, "to_dict"):
            values[name] = shrunk(type(value))
        elif name == "use_cache":
            values[name] = False
        elif name == "head_dim" and value is None:
            values[name] = 8
        elif name in lists:
            values[name] = type(value)(value[i] for i in kept)
        elif name in LAYERS and value:
            values[name] = len(kept)
        elif name in KEY_HEADS:
            heads = default.get(KEY_HEADS[name])
            values[name] = 4 if value in (heads, None) else min(value, 2)
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value > 4:
            values[name] = token = token - 1
        elif name in SIZES and isinstance(value, int) and value > SIZES[name]:
            values[name] = SIZES[name]
        elif name == "rope_parameters" and value:
            values[name] = _rope(value)
    return config_class(**values | given)


def _one_of_each(lists: dict[str, Any], depth: int | None) -> list[int]:
    """Layers to keep: the first of each kind, four at most and two at least."""
    kinds: dict[Any, int] = {}
    for i in range(depth or 0):
        kinds.setdefault(tuple(str(v[i]) for v in lists.values()), i)
    kept = sorted(kinds.values())[:4]
    return kept if len(kept) > 1 else [0, 1]


def _rope(value: Any) -> Any:
    """Rope parameters whose sections fit a head of eight."""
    if isinstance(value, dict):
        return {k: [2, 1, 1] if k == "mrope_section" else _rope(v) for k, v in value.items()}
    return value
