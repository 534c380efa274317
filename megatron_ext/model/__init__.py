"""Megatron's decoder built from a Hugging Face config, at any layout."""
