"""The masks of tiny models of transformers, random weights, open sizes: every kind that they have."""

import warnings

import pytest
import torch

import subquad
from subquad.passes.masks import classify_op

TOKENS = 9
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=99)
SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
SMALL = dict(n_head=4, vocab_size=99, **SPECIAL)
LOCAL = dict(**SIZES, **SPECIAL, num_key_value_heads=2, sliding_window=4)
PADDED, LOCALLY = "causal+padding", "causal+window+padding"
BART = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, vocab_size=99,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, **SPECIAL)  # fmt: skip

QUICK = {
    "MistralForCausalLM sdpa": ("Mistral", {**LOCAL, "num_hidden_layers": 1}, {LOCALLY}),
    "T5EncoderModel sdpa": (
        "T5",
        dict(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=99),
        {"padding+relative"},
    ),
    "GPTNeoForCausalLM eager": (
        "GPTNeo",
        dict(hidden_size=32, num_layers=2, num_heads=4, vocab_size=99, window_size=4, **SPECIAL,
             attention_types=[[["global", "local"], 1]], max_position_embeddings=64),
        {PADDED, LOCALLY},
    ),
}  # fmt: skip
MORE = {
    "BertModel sdpa": ("Bert", SIZES, {"padding"}),
    "Llama4ForCausalLM sdpa": (
        "Llama4Text",
        dict(**SIZES, **SPECIAL, num_key_value_heads=2, head_dim=8, attention_chunk_size=4,
             num_local_experts=2, intermediate_size_mlp=48),
        {"causal+chunked+padding"},
    ),
    "BloomForCausalLM eager": ("Bloom", dict(hidden_size=32, n_layer=1, **SMALL), {"causal+padding+alibi"}),
    "LlamaForCausalLM sdpa": ("Llama", dict(**SIZES, num_key_value_heads=2), {PADDED}),
    "LlamaForCausalLM eager": ("Llama", dict(**SIZES, num_key_value_heads=2), {PADDED}),
    "Gemma2ForCausalLM eager": ("Gemma2", dict(**LOCAL, head_dim=8), {PADDED, LOCALLY}),
    "Gemma3ForCausalLM sdpa": (
        "Gemma3Text",
        dict(**LOCAL, head_dim=8, layer_types=["sliding_attention", "full_attention"]),
        {PADDED, LOCALLY},
    ),
    "GPT2LMHeadModel sdpa": ("GPT2", dict(n_embd=32, n_layer=1, **SMALL), {PADDED}),
    "GPTJForCausalLM eager": ("GPTJ", dict(n_embd=32, n_layer=1, rotary_dim=4, **SMALL), {PADDED}),
    "OPTForCausalLM sdpa": (
        "OPT",
        dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, ffn_dim=48, vocab_size=99,
             word_embed_proj_dim=32),
        {PADDED},
    ),
    "MPNetModel eager": ("MPNet", SIZES, {"padding+relative"}),
    "ModernBertModel sdpa": (
        "ModernBert",
        dict(**SIZES, **SPECIAL, cls_token_id=1, sep_token_id=2, local_attention=4,
             global_attn_every_n_layers=2),
        {"padding", "window+padding"},
    ),
    "GptOssForCausalLM eager": (
        "GptOss", dict(**LOCAL, head_dim=8, num_local_experts=2, num_experts_per_tok=1), {PADDED, LOCALLY},
    ),
    "Qwen3ForCausalLM sdpa": ("Qwen3", dict(**SIZES, num_key_value_heads=2, head_dim=8), {PADDED}),
    "Phi3ForCausalLM sdpa": ("Phi3", dict(**SIZES, **SPECIAL, num_key_value_heads=2), {PADDED}),
    "BertModel eager": ("Bert", SIZES, {"padding"}),
    "BartModel sdpa": ("Bart", BART, {"padding", "causal"}),
}  # fmt: skip


def kinds(name, config, sizes, **tokens):
    """The kinds of masks of a model's attentions, captured with open sizes."""
    transformers = pytest.importorskip("transformers")
    model, attention = name.split()
    made = getattr(transformers, f"{config}Config")(**sizes)
    made.use_cache = False
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = getattr(transformers, model)._from_config(made, attn_implementation=attention).eval()
        fast = subquad.optimize(
            model, (), tokens, attention="exact", check=False, backend="eager",
            dynamic_shapes={k: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for k in tokens},
        )  # fmt: skip
    sites = [site for site in fast.sites if site.op.name == "attention"]
    return fast, {classify_op(site.op).kind for site in sites}


def text():
    """Tokens, the last of the second sequence padding."""
    mask = torch.arange(TOKENS)[None] < TOKENS - torch.arange(2)[:, None]
    return {"input_ids": torch.arange(4, 4 + 2 * TOKENS).reshape(2, TOKENS), "attention_mask": mask.long()}


@pytest.mark.parametrize("name", QUICK)
def test_masks_of_models(name):
    """A window, a relative bias, and masks that a model keeps in buffers."""
    config, sizes, expected = QUICK[name]
    assert kinds(name, config, sizes, **text())[1] == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_masks_of_more_models(name):
    """The families that people run."""
    config, sizes, expected = MORE[name]
    assert kinds(name, config, sizes, **text())[1] == expected


@pytest.mark.slow
def test_packed_sequences():
    """position_ids that start over: segments, and comparisons of positions as comparisons of indices."""
    ids = text()["input_ids"]
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1], [0, 1, 0, 1, 2, 3, 4, 5, 6]])
    name, sizes = "MistralForCausalLM sdpa", LOCAL
    fast, found = kinds(name, "Mistral", sizes, input_ids=ids, position_ids=positions)
    assert found == {"causal+window+packed"}
    assert classify_op(fast.sites[0].op).window == 4


@pytest.mark.slow
def test_windows_of_images():
    """Swin: a learned bias, and between shifted windows regions that do not see each other, softly."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2], num_heads=[2], window_size=4
    )  # fmt: skip
    model = transformers.SwinModel._from_config(config, attn_implementation="eager").eval()
    image = {"pixel_values": torch.zeros(1, 3, 32, 32)}
    fast = subquad.optimize(model, (), image, attention="exact", check=False, backend="eager")
    first, second = (classify_op(site.op) for site in fast.sites)
    assert (first.kind, second.kind, second.hard) == ("bias", "packed+bias", False)
    assert second.segments[0].shape[-1] == 16 and first.bias.shape == (1, 2, 16, 16)


@pytest.mark.parametrize("name", ["Llama", pytest.param("Mistral", marks=pytest.mark.slow)])
def test_ids_alone_are_one_sequence(name):
    """Positions that the model counts itself start anew nowhere: what looks for packing finds none."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**LOCAL, "num_hidden_layers": 1}, use_cache=False)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    ids, sizes = torch.ones(2, TOKENS, dtype=torch.long), {0: torch.export.Dim("b"), 1: torch.export.Dim("n")}
    for shapes in (None, {"input_ids": sizes}):
        (site,) = subquad.explain(model, (), {"input_ids": ids}, dynamic_shapes=shapes).sites
        assert site.mask == ("causal" if name == "Llama" else "causal+window")
