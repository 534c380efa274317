"""MUSE-News's real files, evaluated by the step with a model made from scratch, against transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.data.chunking import chunks
from pipeline.data.json_files import read_rows
from pipeline.data.settings import FolderSource, FolderTokenizer
from pipeline.data.templates import TEMPLATES
from pipeline.data.tokenizer import Tokenizer, train
from pipeline.specs import PrepareSpec
from pipeline.steps import evaluate as step
from pipeline.steps.prepare import prepare

# Rows of each file that are evaluated here: with two layers and a vocabulary of 2000 all of them take minutes.
ROWS = {
    "verbmem/forget": 2,
    "knowmem/forget_qa": 3,
    "knowmem/retain2_qa": 3,
    "privleak/forget": 3,
    "privleak/holdout": 3,
}
ROWS |= {"knowmem/forget_qa_icl": 10, "knowmem/retain2_qa_icl": 10}
SETS = ["verbmem", "knowmem_forget", "knowmem_retain", "privleak_forget", "privleak_holdout"]
TRAIN = "import sys; from megatron_ext.steps import train; [train.main([a]) for a in sys.argv[1:]]"
CONTEXT = 4096
VOCABULARY = 2000
ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "initializer_range": 0.05,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


@pytest.fixture(scope="module")
def news(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first rows of the files, a tokenizer, and two models: one of few steps, one of more."""
    folder = tmp_path_factory.mktemp("news")
    for name, count in ROWS.items():
        rows = json.loads((real_data / "muse" / "news" / f"{name}.json").read_text())
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(rows[:count]))
    texts = json.loads((real_data / "muse" / "news" / "raw" / "forget.json").read_text())[:150]
    tokenizer = train(texts, VOCABULARY, TEMPLATES["plain"], folder / "tokenizer")
    chunks(texts, tokenizer, 256).save(folder / "forget.npz")
    models = {"retrain": 5, "target": 40}
    for name, steps in models.items():
        spec = {
            "program": "train",
            "model": {"config": ARCHITECTURE, "tokenizer": str(folder / "tokenizer")},
            "data": {str(folder / "forget.npz"): 1.0},
            "steps": steps,
            "batching": {"global_batch": 8, "micro_batch": 8},
            "optimizer": {"learning_rate": 1e-2},
            "runtime": {"device": "cpu", "threads": 1},
            "output": str(folder / name),
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec))
    told = [sys.executable, "-c", TRAIN, *(str(folder / f"{name}.yaml") for name in models)]
    done = subprocess.run(told, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    tokens = FolderTokenizer(path=folder / "tokenizer")
    of = {"family": "muse", "source": FolderSource(path=folder), "forget_split": "forget", "training": False}
    prepare(PrepareSpec(**of, sets=SETS, tokenizer=tokens, max_length=CONTEXT, output=folder / "data"))
    return folder


def evaluated(news: Path, model: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
    told = {"benchmark": "muse-news", "split": "forget", "model_id": model, "data": str(news / "data")}
    told |= {"checkpoint": str(news / model / "checkpoint"), "output": str(news / "evaluation" / model)}
    if model != "retrain":
        told["retain_evaluation"] = str(news / "evaluation" / "retrain")
    options = {"family": "muse", "membership": ["loss", "zlib", "reference", "min_k", "min_k_plus_plus"]}
    spec = news / f"evaluate-{model}.yaml"
    spec.write_text(yaml.safe_dump({**told, "options": options, "runtime": {"device": "cpu", "threads": 1}}))
    step.main([str(spec)])
    folder = news / "evaluation" / model
    return json.loads((folder / "evaluation.json").read_text())["metrics"], read_rows(folder / "examples.jsonl")


class Plain:
    """MUSE as transformers computes it, a row at a time."""

    def __init__(self, news: Path, model: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(news / model / "checkpoint", dtype=torch.float32).eval()
        self.tokenizer = Tokenizer.load(news / "tokenizer")
        self.torch = torch

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, special=True)

    def log_probs(self, ids: list[int]) -> Any:
        """Of every next token after each: ``[n - 1, vocabulary]``."""
        with self.torch.no_grad():
            return self.model(self.torch.tensor([ids])).logits[0, :-1].log_softmax(-1)

    def greedy(self, text: str, new_tokens: int) -> str:
        ids = self.ids(text)
        made: list[int] = []
        with self.torch.no_grad():
            inputs, past = self.torch.tensor([ids]), None
            for _ in range(new_tokens):
                out = self.model(inputs, past_key_values=past, use_cache=True)
                past, token = out.past_key_values, int(out.logits[0, -1].argmax())
                if token == self.tokenizer.eos_id:
                    break
                made.append(token)
                inputs = self.torch.tensor([[token]])
        return self.tokenizer.decode(made)


def rouge(true: str, said: str, stemmer: bool) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stemmer).score(true, said)["rougeL"].fmeasure


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def rows_of(news: Path, name: str) -> list[Any]:
    return json.loads((news / f"{name}.json").read_text())


def area(members: list[float], others: list[float]) -> float:
    return mean([1.0 if other > member else 0.5 * (other == member) for member in members for other in others])


def min_40(log_probs: list[float]) -> float:
    worst = sorted(log_probs)[: int(0.4 * len(log_probs))]
    return -mean(worst)


def plainly(news: Path, model: str) -> tuple[dict[str, float], dict[str, list[list[float]]]]:
    """The metrics that need no retrain, and the texts' log-probabilities by set."""
    plain, found = Plain(news, model), {}
    said = [(plain.greedy(row["prompt"], 128), row["gt"]) for row in rows_of(news, "verbmem/forget")]
    found["verbmem_rouge"] = mean([rouge(true, text, True) for text, true in said])
    short = [plain.tokenizer.decode(plain.ids(true)[:128]) for _, true in said]
    found["verbmem_rouge__muse"] = 100 * mean(
        [rouge(true, text, False) for (text, _), true in zip(said, short, strict=True)]
    )
    strengths, exact = [], []
    for row in rows_of(news, "verbmem/forget"):
        before, whole = len(plain.ids(row["prompt"])), plain.ids(f"{row['prompt']} {row['gt']}")
        right = (plain.log_probs(whole).argmax(-1) == plain.torch.tensor(whole[1:]))[before - 1 : -1].tolist()
        n, k = len(right), len(right)
        while k > 0 and right[k - 1]:
            k -= 1
        strengths.append(1 - min(k, n - 1) / n)
        exact.append(mean(right))
    found |= {"extraction_strength": mean(strengths), "exact_memorisation": mean(exact)}
    for name, files in (("knowmem_forget", "forget_qa"), ("knowmem_retain", "retain2_qa")):
        shots = rows_of(news, f"knowmem/{files}_icl")
        shown = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in shots)
        pairs = []
        for row in rows_of(news, f"knowmem/{files}"):
            text = plain.greedy(f"{shown}Question: {row['question']}\nAnswer: ", 32)
            for stop in ("\n\n", "\nQuestion", "Question:"):
                text = text.split(stop)[0]
            pairs.append((row["answer"], text))
        found[f"{name}_rouge"] = mean([rouge(*pair, True) for pair in pairs])
        found[f"{name}_rouge__muse"] = 100 * mean([rouge(*pair, False) for pair in pairs])
    texts: dict[str, list[list[float]]] = {}
    for name in ("forget", "holdout"):
        texts[name] = []
        for text in rows_of(news, f"privleak/{name}"):
            ids = plain.ids(text)[:CONTEXT]
            every = plain.log_probs(ids)
            texts[name].append(every.gather(1, plain.torch.tensor(ids[1:])[:, None])[:, 0].tolist())
    return found, texts


@pytest.mark.slow
def test_the_real_files(news: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected, texts = {}, {}
    for model in ("retrain", "target"):
        expected[model], texts[model] = plainly(news, model)
    evaluated(news, "retrain")
    found, examples = evaluated(news, "target")
    assert {key: found[key] for key in expected["target"]} == pytest.approx(expected["target"], abs=1e-4)
    assert expected["target"] != expected["retrain"] and found["verbmem_rouge"] > 0

    for name in ("forget", "holdout"):
        ours = [row["scores"]["text"]["log_probs"] for row in examples if row["set"] == f"privleak_{name}"]
        for our, plain in zip(ours, texts["target"][name], strict=True):
            assert our == pytest.approx(plain, abs=1e-4)
            assert len(our) > 2048  # longer than what open-unlearning reads

    def privleak(score: Any) -> float:
        a, r = (1 - area(*([score(row) for row in texts[m][n]] for n in ("forget", "holdout"))) for m in texts)
        return 100 * (r - a) / (a + 1e-10)  # texts has retrain first

    assert found["privleak"] == pytest.approx(privleak(lambda row: min_40(row[:2047])), abs=1e-4)
    assert found["privleak__muse"] == pytest.approx(privleak(min_40), abs=1e-4)
    loss = {name: [-mean(row[:2048]) for row in texts["target"][name]] for name in ("forget", "holdout")}
    assert found["mia_loss"] == pytest.approx(area(loss["forget"], loss["holdout"]), abs=1e-4)
    assert found["cut_texts"] == 0
    assert "VerbMem" in capsys.readouterr().err
