"""Hugging Face checkpoint folders in and out of Megatron models, at any layout.

A folder is ``config.json``, ``*.safetensors`` and the tokenizer's files. No process ever holds the whole model: reading
takes each rank's own slices, writing gathers one parameter at a time, of a model with a scope only the trained ones.
Pickled weights are never opened.
"""

from megatron_ext.fingerprint import fingerprint
from megatron_ext.weights.patching import save_changed
from megatron_ext.weights.reading import extrapolate, fill, initialise, load, read_config
from megatron_ext.weights.sources import InitialValues, SafetensorsFolder, Source
from megatron_ext.weights.writing import save

__all__ = [
    "InitialValues",
    "SafetensorsFolder",
    "Source",
    "extrapolate",
    "fill",
    "fingerprint",
    "initialise",
    "load",
    "read_config",
    "save",
    "save_changed",
]
