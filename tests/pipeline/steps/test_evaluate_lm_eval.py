"""The evaluate step on multiple-choice questions that the prepare step wrote, with a real engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.data.tokenizer import Tokenizer
from pipeline.specs import EvaluateSpec, PrepareSpec
from pipeline.steps.evaluate import evaluate
from pipeline.steps.prepare import prepare

TOPICS = ["instruments", "minerals"]


@pytest.mark.slow
def test_a_model_is_asked_and_its_metrics_are_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    source = {"kind": "synthetic_topics", "things": 8, "paragraphs": 1}
    told = {"family": "lm_eval", "forget_split": "instruments", "sets": TOPICS, "source": source, "max_length": 96}
    told |= {"tokenizer": {"kind": "bpe", "vocab_size": 500}, "output": str(tmp_path / "data")}
    prepare(PrepareSpec.model_validate(told))
    sizes = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.2)).eval()
    model.save_pretrained(tmp_path / "model")

    options = {"family": "lm_eval", "tasks": TOPICS, "prepared": TOPICS, "prompt_format": "texts"}
    options |= {"forget": ["instruments"], "retain": ["minerals"], "metrics": ["acc", "acc_norm"]}
    told = {"options": options, "benchmark": "b", "split": "instruments", "model_id": "m", "runtime": {"device": "cpu"}}
    told |= {name: str(tmp_path / name) for name in ("data", "output")} | {"checkpoint": str(tmp_path / "model")}
    found = evaluate(EvaluateSpec.model_validate(told))
    assert found is not None and found.settings.examples == {"instruments": 40, "minerals": 40}

    tokenizer = Tokenizer.load(tmp_path / "data" / "tokenizer")
    right = 0
    for line in (tmp_path / "data" / "evaluation" / "minerals.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer.encode(f"Question: {row['question']}\nAnswer:", special=True)
        sums = []
        for choice in row["choices"]:
            target = tokenizer.encode(f"Question: {row['question']}\nAnswer: {choice}", special=True)[len(prompt) :]
            with torch.no_grad():
                every = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            sums.append(float(every.gather(-1, torch.tensor(target).unsqueeze(-1)).sum()))
        right += sums.index(max(sums)) == row["answer"]
    assert found.metrics["minerals_acc"] == right / 40

    capsys.readouterr()
    assert not main(["metrics", str(tmp_path / "output" / "examples.jsonl")])
    assert json.loads(capsys.readouterr().out) == found.metrics
