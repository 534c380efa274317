"""Where answers end at a stop."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.benchmarks.megatron_lm import stopped_by
from pipeline.benchmarks.requests import text_of
from pipeline.data.templates import TEMPLATES
from pipeline.data.tokenizer import Tokenizer, train


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Its end token is none of those that close a turn."""
    template = replace(TEMPLATES["chatml"], eos="</s>")
    return train(["one two three Question: four"] * 9, 320, template, tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    ("answer", "stops", "read"),
    [
        ("one two<|im_end|> three", ("<|im_end|>",), "one two"),
        ("one two<|im_end|> three", ("Question:", "<|im_end|>"), "one two"),
        ("<|im_end|>one", ("<|im_end|>",), ""),
        ("one two<|im_end|>\n three", ("<|im_end|>\n",), "one two"),
        ("one two<|im_end|> three", ("Question:",), "one two three"),
        ("one two<|im_start|> three Question: four", ("Question:",), "one two three"),
        ("one two three", ("<|im_end|>", "four"), "one two three"),
    ],
)
def test_an_answer_ends_at_a_stop_that_is_a_special_token(
    tokenizer: Tokenizer, answer: str, stops: tuple[str, ...], read: str
) -> None:
    stopped, ids = stopped_by(tokenizer), list[int]()
    for token in tokenizer.encode(answer, special=False):
        ids.append(token)
        if stopped(ids, stops):
            break
    assert text_of(ids, stops, tokenizer) == read
