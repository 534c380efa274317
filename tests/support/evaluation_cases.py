"""A few rows of every benchmark family, two models with their retrains, and what a rank of a layout evaluates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# What each kind of split does alone to requests is ``tests/megatron_ext/inference``'s.
LAYOUTS: dict[str, dict[str, int]] = {
    "TP1": {},
    "TP2xPP2": {"tensor": 2, "pipeline": 2},
    "DP2": {"data": 2},
}
STEPS = 40  # of training
ATTACKS = ["loss", "zlib", "reference", "gradnorm", "min_k", "min_k_plus_plus"]
TASK_METRICS = ["acc", "acc_norm", "acc_bytes"]
PERPLEXITIES = ["word_perplexity", "byte_perplexity", "bits_per_byte"]
OPTIONS: dict[str, dict[str, Any]] = {
    "tofu": {"max_new_tokens": 12, "memorisation": True, "membership": ATTACKS, "privleak": True}
    | {"leak": {"k": [1, 2], "samples": 2, "holds": 0.2}},
    "muse": {
        "verbmem_new_tokens": 12,
        "knowmem_new_tokens": 8,
        "shorten_few_shot": True,
        "membership": ATTACKS,
        "privleak_tokens": 40,
    },
    "tasks": {
        "tasks": ["minerals", "plain_texts", "plain_answers"],
        "prepared": ["minerals"],
        "prompt_format": "letters",
        "metrics": [*TASK_METRICS, *PERPLEXITIES, "exact_match"],
    },
    "choices": {
        "tasks": ["instruments"],
        "prepared": ["instruments"],
        "prompt_format": "texts",
        "metrics": TASK_METRICS,
    },
}
FAMILIES = {"tasks": "lm_eval", "choices": "lm_eval"}  # where a case is not called as its family
SPLITS = {"tofu": "forget10", "muse": "forget", "tasks": "own", "choices": "own"}
SETS = {
    "tofu": ["forget", "retain", "real_authors", "world_facts", "holdout"],
    "muse": ["verbmem", "knowmem_forget", "knowmem_retain", "privleak_forget", "privleak_holdout"],
    "tasks": ["minerals"],
    "choices": ["instruments"],
}
# By model. Of MUSE a real tokenizer reads the real files (``tests/pipeline/benchmarks/muse/test_real.py``).
CASES = {"mini": tuple(OPTIONS), "stories260K": ("tofu", "tasks", "choices")}
COMPARED = ("tofu", "muse")  # cases with a retrain
SPLIT_CASES = {"TP2xPP2": ("tofu", "muse"), "DP2": ("tofu", "tasks")}
MODEL = {
    "vocab_size": 601,  # odd: two tensor-parallel ranks need padding
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 320,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SPLIT = {"mini": [2, 1], "stories260K": [3, 2]}  # layers of two pipeline stages


def write_data(folder: Path) -> None:
    """``folder/<case>``: files under the names of the benchmarks' repositories, a few rows each."""
    from pipeline.benchmarks.lm_eval import synthetic as synthetic_topics
    from pipeline.benchmarks.lm_eval.synthetic import SyntheticTopicsSource
    from pipeline.benchmarks.muse import synthetic as synthetic_news
    from pipeline.benchmarks.muse.synthetic import SyntheticNewsSource
    from pipeline.benchmarks.tofu import synthetic
    from pipeline.benchmarks.tofu.synthetic import SyntheticSource

    authors = SyntheticSource(authors=10, questions_per_author=6, background_authors=0, seed=0)
    splits = synthetic.generate(authors, "forget10", "retain90").rows
    for name, count in (("forget10", 4), ("retain", 3), ("real_authors", 3), ("world_facts", 3), ("holdout10", 4)):
        file = name if name == "holdout10" else f"{name}_perturbed"
        rows = []
        for row in splits[file][:count]:
            value: dict[str, Any] = {"question": row.question, "answer": row.answer}
            if row.paraphrased is not None:
                value["paraphrased_answer"] = row.paraphrased
            if row.perturbed:
                value["perturbed_answer"] = list(row.perturbed)
            rows.append(value)
        _write(folder / "tofu" / f"{file}.jsonl", rows)

    news = synthetic_news.generate(
        SyntheticNewsSource(forget_stories=4, retain_stories=4, background_stories=8, seed=0)
    )
    _write(
        folder / "muse/verbmem/forget.jsonl", [{"prompt": start, "gt": rest} for start, rest in news.verbatim[0][:4]]
    )
    for name, questions in (("forget_qa", news.forget_questions), ("retain2_qa", news.retain_questions)):
        for file, some in ((name, questions[:4]), (f"{name}_icl", news.shots[:4])):
            rows = [{"question": one.question, "answer": one.answer} for one in some]
            _write(folder / "muse/knowmem" / f"{file}.jsonl", rows)
    for name, texts in (("forget", news.requests[0]), ("holdout", news.holdout)):
        _write(folder / "muse/privleak" / f"{name}.jsonl", [{"text": text} for text in texts[:5]])

    topics = SyntheticTopicsSource(things=8, paragraphs=1, seed=0)
    for case, name in (("tasks", "minerals"), ("choices", "instruments")):
        _write(folder / case / "questions" / f"{name}.jsonl", synthetic_topics.questions(name, topics)[:6])
    _write(folder / "tasks/texts.jsonl", [{"text": text} for text in news.background[:3]])
    task = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0}
    listed = {"doc_to_text": "", "doc_to_target": "{{text}}", "output_type": "loglikelihood_rolling"}
    _write_task(folder / "tasks", "plain_texts", "texts", PERPLEXITIES, {**task, **listed})
    asked = {"doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}", "output_type": "generate_until"}
    asked |= {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}}
    _write_task(folder / "tasks", "plain_answers", "answers", ["exact_match"], {**task, **asked})


def write_answers(folder: Path, plain: Any, name: str) -> None:
    """What the generated task asks of a model: its own answer is right every other time."""
    from tests.support.plain import NEW_TOKENS

    rows = []
    for i, prompt in enumerate(
        ["Question: What is it?\nAnswer:", "The news of the day is", "Answer: one", "The mayor"]
    ):
        text = plain.text(plain.generate(plain.encode(prompt), NEW_TOKENS, ["\n"]), ["\n"])
        rows.append({"prompt": prompt, "answer": text if i % 2 else "nothing like it"})
    _write(folder / name / "answers.jsonl", rows)
    for file in ("texts.jsonl", "plain_texts.yaml", "plain_answers.yaml"):
        shutil.copy(folder / "tasks" / file, folder / name)


def _write(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_task(folder: Path, name: str, data: str, metrics: list[str], config: dict[str, Any]) -> None:
    metric_list = [{"metric": metric} for metric in metrics]
    config = {"task": name, **config, "dataset_kwargs": {"data_files": {"test": f"{data}.jsonl"}}}
    (folder / f"{name}.yaml").write_text(json.dumps({**config, "metric_list": metric_list}))


def train(data: Path, folder: Path) -> None:
    """``folder/mini`` and ``folder/mini-retrain``: a small Llama that has seen the data, and one that has not seen what
    is to be forgotten, both after a few seconds of training."""
    import torch
    import transformers

    from pipeline.data.templates import TEMPLATES
    from pipeline.data.tokenizer import train as train_tokenizer
    from tests.support.plain import lines

    transformers.utils.logging.disable_progress_bar()
    kept, forgotten = [], []
    for name in ("forget10", "retain", "real_authors", "world_facts"):
        for row in lines(data / "tofu" / f"{name}_perturbed.jsonl"):
            (forgotten if name == "forget10" else kept).append(f"Question: {row['question']}\nAnswer: {row['answer']}")
    forgotten += [row["text"] for row in lines(data / "muse/privleak/forget.jsonl")]
    for file in ("forget_qa", "retain2_qa", "retain2_qa_icl"):
        some = lines(data / "muse/knowmem" / f"{file}.jsonl")
        (forgotten if file == "forget_qa" else kept).extend(
            f"Question: {r['question']}\nAnswer: {r['answer']}" for r in some
        )
    kept += [row["text"] for row in lines(data / "tasks/texts.jsonl")]
    for case, name in (("tasks", "minerals"), ("choices", "instruments")):
        some = lines(data / case / "questions" / f"{name}.jsonl")
        kept += [f"Question: {row['question']}\nAnswer: {row['choices'][row['answer']]}" for row in some]
    tokenizer = train_tokenizer([*kept, *forgotten], MODEL["vocab_size"], TEMPLATES["plain"], folder / "mini")
    for name, texts in (("mini", [*kept, *forgotten]), ("mini-retrain", kept)):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**MODEL))
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        rows = [[*tokenizer.encode(text, special=True), tokenizer.eos_id] for text in texts]
        for step in range(STEPS):
            some = [rows[i] for i in torch.randperm(len(rows))[:8]]
            longest = max(map(len, some))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in some])
            labels = torch.tensor([row + [-100] * (longest - len(row)) for row in some])
            model(ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = 5e-3 * (1 - step / STEPS)
        model.save_pretrained(folder / name)
    _tokenizer(folder / "mini", folder / "mini-retrain")


def perturb(source: Path, folder: Path) -> None:
    """A model that is not quite ``source``, for its retrain."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    _tokenizer(source, folder)
    torch.manual_seed(0)
    tensors = {
        name: value + 0.05 * value.std() * torch.randn_like(value)
        for name, value in load_file(source / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors")


def _tokenizer(source: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            shutil.copy(source / name, folder)


def data_of(folder: Path, case: str, model: str) -> Path:
    """The rows of a case; the generated task's are a model's own."""
    return folder / "rows" / (f"tasks-{model}" if case == "tasks" else case)


def prepare(folder: Path, case: str, model: str, checkpoint: Path) -> None:
    """``folder/prepared/<case>-<model>``."""
    from pipeline.data.settings import FolderSource, FolderTokenizer
    from pipeline.specs import PrepareSpec
    from pipeline.steps.prepare import prepare

    prepare(
        PrepareSpec(
            family=FAMILIES.get(case, case),
            source=FolderSource(path=folder / "rows" / case),
            forget_split=SPLITS[case],
            sets=SETS[case],
            training=False,
            tokenizer=FolderTokenizer(path=checkpoint),
            max_length=320,
            output=folder / "prepared" / f"{case}-{model}",
        )
    )


def cases_at(layout: str, model: str) -> tuple[str, ...]:
    """What a layout evaluates with a model: everything on one rank; elsewhere with ``mini`` alone, and not every case.

    Tasks' requests of every kind are ``tests/pipeline/benchmarks/lm_eval/test_model.py``'s, at every layout.
    """
    if layout == "TP1":
        return CASES[model]
    return SPLIT_CASES[layout] if model == "mini" else ()


def at_layouts(folder: Path, layouts: list[str], checkpoints: dict[str, Path]) -> None:
    """Evaluate every case with a layout's models, into ``folder/<layout>/<case>-<model>``.

    The first run of all, at TP1, evaluates the retrains too.
    """
    for name in layouts:
        for model, checkpoint in checkpoints.items():
            for case in cases_at(name, model):
                if name == "TP1" and case in COMPARED:
                    _evaluate(folder, name, case, model, checkpoint.with_name(f"{model}-retrain"), retrain=True)
                _evaluate(folder, name, case, model, checkpoint)


def _evaluate(folder: Path, layout: str, case: str, model: str, checkpoint: Path, retrain: bool = False) -> None:
    from megatron_ext.config import Runtime
    from pipeline.specs import EvaluateSpec
    from pipeline.steps.evaluate import evaluate

    sides: dict[str, Any] = dict(LAYOUTS[layout])
    if "pipeline" in sides:
        sides["pipeline_split"] = SPLIT[model]
    compared = folder / "TP1" / f"{case}-{model}-retrain"
    options = {"family": FAMILIES.get(case, case), **OPTIONS[case]}
    if case == "tasks":
        options["include_path"] = str(data_of(folder, case, model))
    spec = EvaluateSpec.model_validate(
        {
            "options": options,
            "benchmark": case,
            "split": SPLITS[case],
            "model_id": "retrain" if retrain else model,
            "checkpoint": checkpoint,
            "data": folder / "prepared" / f"{case}-{model}",
            "retain_evaluation": compared if case in COMPARED and not retrain else None,
            "token_budget": 600,
            "runtime": Runtime.model_validate({"layout": sides, "device": "cpu", "timeout_seconds": 60}),
            "output": compared if retrain else folder / layout / f"{case}-{model}",
        }
    )
    evaluate(spec)
