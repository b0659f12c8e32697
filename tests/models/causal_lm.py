"""The causal language models of Hugging Face, every class of its mapping."""
