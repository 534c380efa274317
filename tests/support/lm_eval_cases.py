"""Requests of lm-evaluation-harness, what its own HFLM makes of them, and what a rank of a layout does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NEW_TOKENS = 12
TOKEN_BUDGET = 150
QUESTION = (
    "The following are multiple choice questions (with answers) about music.\n\n"
    "Which part is struck?\nA. the rim\nB. the bell\nC. the strap\nD. the reed\nAnswer:"
)


def tokenizer(folder: Path) -> None:
    """A tokenizer that fits ``tests.support.tiny``'s models: 517 ids, a start token before every text."""
    from pipeline.data.templates import TEMPLATES
    from pipeline.data.tokenizer import train

    texts = [QUESTION, "the old drum of the north is struck with the hand and not with a stick", "Answer: A B C D"] * 4
    assert train(texts, 517, TEMPLATES["plain"], folder).bos_id is not None


def instances(kind: str) -> list[Any]:
    from lm_eval.api.instance import Instance

    if kind == "loglikelihood":
        pairs = [(QUESTION, f" {letter}") for letter in "ABCD"]  # 49 tokens
        pairs += [("the old drum ", "is struck"), ("the old", "er drum"), ("drum  ", "  bell")]  # spaces; one word
        pairs += [("", "the reed"), ("", "<s>the reed"), ("<s>the bell", " rings")]
        pairs += [(QUESTION[: QUESTION.index("Which") + 5], "ip")]  # what this model says
        pairs += [(QUESTION * 3, " B"), ("drum " * 60, "the strap and the rim")]  # longer than the context of 64
        every: list[tuple[Any, ...]] = [*pairs, pairs[0]]
    elif kind == "loglikelihood_rolling":
        every = [("the reed",), (QUESTION * 4,), ("<s>the old drum",), ("",), ("drum " * 62,)]
    else:
        stops = [["\n"], ["the", " B"], [], "x", ["</s>", "e"]]
        every = [(QUESTION[i * 7 :], {"until": until, "max_gen_toks": NEW_TOKENS}) for i, until in enumerate(stops)]
        every += [(QUESTION * 2, {"max_gen_toks": 4, "until": []}), ("drum", {"do_sample": False, "max_gen_toks": 60})]
    return [Instance(kind, {}, args, 0, ("music", i, 1)) for i, args in enumerate(every)]


KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def write(folder: Path) -> dict[str, list[Any]]:
    """A model with a tokenizer in ``folder``, and what HFLM answers, one request at a time."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    from tests.support import tiny

    model = tiny.make("llama3-untied")
    model.save_pretrained(folder)
    tokenizer(folder)
    theirs = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=1, device="cpu")
    assert theirs.max_length == 64
    return {kind: getattr(theirs, kind)(instances(kind), disable_tqdm=True) for kind in KINDS}


def at_layouts(folder: Path, layouts: list[dict[str, int]]) -> list[dict[str, Any]]:
    """What a rank gets at each layout: by kind the answers, and ``cut``."""
    return [at_layout(folder, layout) for layout in layouts]


def at_layout(folder: Path, layout: dict[str, int]) -> dict[str, Any]:
    from megatron_ext.config import Runtime
    from pipeline.benchmarks.lm_eval.model import HarnessLM
    from pipeline.benchmarks.megatron_lm import megatron_engine
    from pipeline.data.tokenizer import Tokenizer

    runtime = Runtime.model_validate({"layout": layout, "device": "cpu", "timeout_seconds": 60})
    with megatron_engine(folder, runtime, Tokenizer.load(folder), (TOKEN_BUDGET, TOKEN_BUDGET), None) as ask:
        results: dict[str, Any] = {"layout": layout}
        for kind in KINDS:
            ours = HarnessLM(ask)
            results[kind] = getattr(ours, kind)(instances(kind))
            results[f"{kind}_cut"] = sorted(ours.cut)
        return results
