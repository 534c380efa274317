"""Hugging Face checkpoint folders in and out of Megatron models, at any layout.

A folder is ``config.json``, ``*.safetensors`` and the tokenizer's files. No process ever holds the whole model: reading
takes each rank's own slices, writing gathers one parameter at a time. Pickled weights are never opened.
"""
