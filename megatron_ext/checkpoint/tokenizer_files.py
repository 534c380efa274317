"""Names of the files that a tokenizer has in a Hugging Face folder. Imports nothing: planning reads them too."""

from __future__ import annotations

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.txt",
)
# Of these a folder needs one: each holds a vocabulary.
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
