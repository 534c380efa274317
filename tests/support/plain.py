"""Every benchmark's metrics by transformers and plain loops, written from their definitions; nothing of ours is used.

One sequence at a time, logits of the whole vocabulary, greedy decoding without a cache, areas under ROC curves by
counting pairs. ``docs/metrics.md`` has the definitions.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Numbers = dict[str, Any]  # of a target: log_probs, means, variances, correct


class Plain:
    """A model and its tokenizer, by transformers. ``gap``: the least difference between the largest and the second
    largest logit that a greedy choice was made by."""

    def __init__(self, folder: Path) -> None:
        import transformers

        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.context = self.model.config.max_position_embeddings
        self.gap = math.inf

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids, with the start token before them and nothing after them."""
        start = [self.tokenizer.bos_token_id] if special else []
        return start + self.tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def answered(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of what follows it; the end token is not among them."""
        start, whole = self.encode(prompt), self.encode(prompt + answer)
        assert whole[: len(start)] == start
        return start, whole[len(start) :]

    def score(self, prompt: list[int], target: list[int]) -> Numbers:
        import torch

        with torch.no_grad():
            logits = self.model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].double()
        every = logits.log_softmax(-1)
        mean = (every.exp() * every).sum(-1)
        return {
            "log_probs": [float(row[i]) for row, i in zip(every, target, strict=True)],
            "means": mean.tolist(),
            "variances": ((every.exp() * every**2).sum(-1) - mean**2).tolist(),
            "correct": [int(row.argmax()) == i for row, i in zip(every, target, strict=True)],
        }

    def gradient_norm(self, prompt: list[int], target: list[int]) -> float:
        """Mean over parameter tensors of the 2-norm of the mean loss's gradient."""
        import torch

        self.model.zero_grad()
        logits = self.model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(target)).backward()
        norms = [float(p.grad.norm()) for p in self.model.parameters()]
        self.model.zero_grad()
        return sum(norms) / len(norms)

    def generate(self, prompt: list[int], tokens: int, stops: Sequence[str] = ()) -> list[int]:
        """Greedy ids, up to and without the end token; those that hold a stop end with it."""
        import torch

        new: list[int] = []
        while len(new) < min(tokens, self.context - len(prompt)):
            with torch.no_grad():
                best = self.model(torch.tensor([prompt + new])).logits[0, -1].topk(2)
            self.gap = min(self.gap, float(best.values[0] - best.values[1]))
            if int(best.indices[0]) == self.tokenizer.eos_token_id:
                break
            new.append(int(best.indices[0]))
            if any(stop in self.decode(new) for stop in stops):
                break
        return new

    def text(self, ids: Sequence[int], stops: Sequence[str] = ()) -> str:
        text = self.decode(ids)
        for stop in stops:
            text = text.split(stop)[0]
        return text


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def harmonic(values: Sequence[float]) -> float:
    return 0.0 if min(values) == 0 else len(values) / sum(1 / value for value in values)


def loss(score: Numbers) -> float:
    return -mean(score["log_probs"])


def rouge(kind: str, measure: str, stemmer: bool, references: Sequence[str], texts: Sequence[str]) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=stemmer)
    return mean([getattr(scorer.score(r, t)[kind], measure) for r, t in zip(references, texts, strict=True)])


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    wins = sum((other > member) + (other == member) / 2 for other in others for member in members)
    return wins / (len(members) * len(others))


def leak(own: float, retrain: float) -> float:
    return 100 * ((1 - own) - (1 - retrain)) / ((1 - retrain) + 1e-10)


def lowest(values: Sequence[float], count: int) -> float:
    return -mean(sorted(values)[:count])


def extraction(correct: Sequence[bool]) -> float:
    """1 - k/n for the least k, from 0 to n - 1, after which everything is predicted; n - 1 where there is none."""
    n = len(correct)
    return 1 - next((k for k in range(n) if all(correct[k:])), n - 1) / n


def repetitive(text: str) -> bool:
    pieces = re.findall(r"\w{1,8}|[^\w\s]", text)
    grams = [tuple(pieces[i : i + 4]) for i in range(len(pieces) - 3)]
    return len(pieces) >= 8 and len(set(grams)) < len(grams) / 2


def membership(
    scores: Callable[[str], list[Numbers]], reference: Callable[[str], list[Numbers]], sets: tuple[str, str]
) -> dict[str, float]:
    """The attacks' areas. A set's ``scores`` have, beside those of ``Plain.score`` for all tokens, ``first`` (those
    without the last one), ``labelled`` (the text) and ``gradient_norm``."""
    attacks: dict[str, Callable[[Numbers, Numbers], float]] = {
        "loss": lambda own, _: loss(own),
        "zlib": lambda own, _: loss(own) / len(zlib.compress(own["labelled"].encode())),
        "reference": lambda own, other: loss(own) - loss(other),
        "gradnorm": lambda own, _: own["gradient_norm"],
        "min_k": lambda own, _: least(own["first"]["log_probs"]),
        "min_k_plus_plus": lambda own, _: least(standard(own["first"])),
    }

    def of(name: str, attack: str) -> list[float]:
        pairs = zip(scores(name), reference(name), strict=True)
        return [attacks[attack](own, other) for own, other in pairs]

    return {f"mia_{attack}": auc(of(sets[0], attack), of(sets[1], attack)) for attack in attacks}


def least(values: Sequence[float]) -> float:
    return lowest(values, max(1, int(0.4 * len(values))))


def standard(score: Numbers) -> list[float]:
    rows = zip(score["log_probs"], score["means"], score["variances"], strict=True)
    return [(value - middle) / max(spread, 1e-6) ** 0.5 for value, middle, spread in rows]


def without_last(score: Numbers) -> Numbers:
    return {key: values[:-1] for key, values in score.items()}


def tofu(plain: Plain, data: Path, options: Mapping[str, Any], retrain: Any = None) -> tuple[dict[str, float], Any]:
    """Metrics of TOFU, and what another model's need of this one's; of a retrain, ``retrain`` is not given."""
    found: dict[str, list[dict[str, Any]]] = {}
    files = {"holdout": "holdout10", "forget": "forget10_perturbed"}
    for name in ("forget", "retain", "real_authors", "world_facts", "holdout"):
        found[name] = []
        for row in lines(data / f"{files.get(name, f'{name}_perturbed')}.jsonl"):
            answers = {"answer": row["answer"]}
            if "paraphrased_answer" in row:
                answers["paraphrased"] = row["paraphrased_answer"]
            answers |= {f"wrong {i}": text for i, text in enumerate(row.get("perturbed_answer", []))}
            scores = {}
            for key, text in answers.items():
                prompt, target = plain.answered(f"Question: {row['question']}\nAnswer:", f" {text}")
                scores[key] = plain.score(prompt, [*target, plain.tokenizer.eos_token_id])
                if key == "answer" and name in ("forget", "holdout"):
                    scores[key] |= {
                        "first": without_last(scores[key]),
                        "labelled": plain.decode(target),
                        "gradient_norm": plain.gradient_norm(prompt, target),
                    }
            example = {"answer": row["answer"], "scores": scores}
            if name != "holdout":
                ids = plain.generate(plain.encode(f"Question: {row['question']}\nAnswer:"), options["max_new_tokens"])
                example |= {"text": plain.decode(ids).strip()}
                example |= {"short": plain.decode(ids[: max(0, 200 - len(prompt))]).strip()}
            found[name].append(example)
    other = retrain or found
    values = {}
    for name in ("forget", "retain", "real_authors", "world_facts"):
        values |= _tofu_set(name, found[name])
    parts = [values[f"{name}_{what}"] for name, what in UTILITY]
    values["model_utility"] = harmonic(parts)
    values["model_utility__tofu"] = harmonic([part for name in UTILITY_SETS for part in _tofu_code(name, found[name])])
    values["forget_quality"] = same(
        [ratio(e, "forget") for e in found["forget"]], [ratio(e, "forget") for e in other["forget"]]
    )
    values["forget_quality__tofu"] = values["forget_quality"]  # fewer than 300 rows, and the order is the same
    correct = [example["scores"]["answer"]["correct"][:-1] for example in found["forget"]]
    values["extraction_strength"] = mean([extraction(row) for row in correct])
    values["exact_memorisation"] = mean([mean(row) for row in correct])

    def scores_of(examples: Any) -> Callable[[str], list[Numbers]]:
        return lambda name: [example["scores"]["answer"] for example in examples[name]]

    values |= membership(scores_of(found), scores_of(other), ("forget", "holdout"))
    there = membership(scores_of(other), scores_of(other), ("forget", "holdout"))
    values["privleak"] = leak(values["mia_min_k"], there["mia_min_k"])
    values["empty_generations"] = sum(not example["text"] for example in found["retain"])
    values["repetitive_generations"] = sum(repetitive(example["text"]) for example in found["retain"])
    return values, found


UTILITY_SETS = ("retain", "real_authors", "world_facts")
UTILITY = [
    (name, what)
    for name in UTILITY_SETS
    for what in ("probability" if name == "retain" else "probability_normalised", "rouge", "truth_ratio")
]


def likely(example: Any, key: str) -> float:
    return math.exp(-loss(example["scores"][key]))


def wrong(example: Any) -> list[float]:
    return [loss(score) for key, score in example["scores"].items() if key.startswith("wrong")]


def true_key(name: str) -> str:
    return "paraphrased" if name in ("forget", "retain") else "answer"


def ratio(example: Any, name: str) -> float:
    return math.exp(-mean(wrong(example))) / (likely(example, true_key(name)) + 1e-10)


def same(first: Sequence[float], second: Sequence[float]) -> float:
    from scipy.stats import ks_2samp

    return float(ks_2samp(first, second).pvalue)


def _tofu_set(name: str, examples: Sequence[Any]) -> dict[str, float]:
    answers, texts = [example["answer"] for example in examples], [example["text"] for example in examples]
    ratios = [ratio(example, name) for example in examples]
    values = {
        "probability": mean([likely(example, "answer") for example in examples]),
        "rouge": rouge("rougeL", "recall", True, answers, texts),
        "rouge1": rouge("rouge1", "recall", True, answers, texts),
    }
    if name in ("real_authors", "world_facts"):
        shares = [
            likely(e, "answer") / (likely(e, "answer") + sum(math.exp(-value) for value in wrong(e)) + 1e-10)
            for e in examples
        ]
        values["probability_normalised"] = mean(shares)
    aggregates = {
        "closer_to_1": mean([min(r, 1 / (r + 1e-10)) for r in ratios]),
        "true_better": mean([max(0, 1 - r) for r in ratios]),
        "prob_mean": mean(
            [
                likely(e, true_key(name)) / (likely(e, true_key(name)) + math.exp(-mean(wrong(e))) + 1e-10)
                for e in examples
            ]
        ),
    }
    default = "closer_to_1" if name == "forget" else "true_better"
    values["truth_ratio"] = aggregates.pop(default)
    values |= {f"truth_ratio_{key}": value for key, value in aggregates.items()}
    return {f"{name}_{key}": value for key, value in values.items()}


def _tofu_code(name: str, examples: Sequence[Any]) -> list[float]:
    """Probability, ROUGE-L and truth ratio as TOFU's own code has them in its model utility."""
    probabilities, ratios = [], []
    for example in examples:
        each = [math.exp(-value) for value in wrong(example)]
        own = likely(example, "answer")
        probabilities.append(own if name == "retain" else own / (own + sum(each)))
        ratios.append(max(0, 1 - mean(each) / likely(example, true_key(name))))
    short = [example["short"] for example in examples]
    answers = [example["answer"] for example in examples]
    return [mean(probabilities), rouge("rougeL", "recall", True, answers, short), mean(ratios)]


STOPS = ("\n\n", "\nQuestion", "Question:")


def muse(plain: Plain, data: Path, options: Mapping[str, Any], retrain: Any = None) -> tuple[dict[str, float], Any]:
    """Metrics of MUSE, and what another model's need of this one's."""
    values: dict[str, float] = {}
    starts = lines(data / "verbmem" / "forget.jsonl")
    new = options["verbmem_new_tokens"]
    texts = [plain.decode(plain.generate(plain.encode(row["prompt"]), new)).strip() for row in starts]
    values["verbmem_rouge"] = rouge("rougeL", "fmeasure", True, [row["gt"] for row in starts], texts)
    short = [plain.decode(plain.encode(row["gt"])[:new]) for row in starts]
    values["verbmem_rouge__muse"] = 100 * rouge("rougeL", "fmeasure", False, short, texts)
    correct = []
    for row in starts:
        start, whole = plain.encode(row["prompt"]), plain.encode(f"{row['prompt']} {row['gt']}")
        correct.append(plain.score(whole[: len(start)], whole[len(start) :])["correct"][:-1])
    values["extraction_strength"] = mean([extraction(row) for row in correct])
    values["exact_memorisation"] = mean([mean(row) for row in correct])
    shortened = 0
    for name, file in (("forget", "forget_qa"), ("retain", "retain2_qa")):
        shots = [
            f"Question: {r['question']}\nAnswer: {r['answer']}\n\n" for r in lines(data / f"knowmem/{file}_icl.jsonl")
        ]
        rows, texts = lines(data / f"knowmem/{file}.jsonl"), []
        for row in rows:
            first, asked = 0, f"Question: {row['question']}\nAnswer: "
            while first < len(shots) and len(plain.encode("".join(shots[first:]) + asked)) + 8 > plain.context:
                first += 1
            shortened += first > 0
            ids = plain.generate(plain.encode("".join(shots[first:]) + asked), options["knowmem_new_tokens"], STOPS)
            texts.append(plain.text(ids, STOPS).strip())
        answers = [row["answer"] for row in rows]
        values[f"knowmem_{name}_rouge"] = rouge("rougeL", "fmeasure", True, answers, texts)
        values[f"knowmem_{name}_rouge__muse"] = 100 * rouge("rougeL", "fmeasure", False, answers, texts)
    values["empty_generations"] = sum(not text for text in texts)  # of the retain questions
    values["repetitive_generations"] = sum(map(repetitive, texts))
    values["shortened_prompts"] = shortened
    found: dict[str, list[Numbers]] = {}
    values["cut_texts"] = 0
    for name in ("forget", "holdout"):
        found[name] = []
        for row in lines(data / f"privleak/{name}.jsonl"):
            start, *every = plain.encode(row["text"])
            whole = plain.score([start], every[: plain.context - 1])
            values["cut_texts"] += len(every) > plain.context - 1
            read = every[: plain.context - 1][: options["privleak_tokens"]]
            score = {key: value[: len(read)] for key, value in whole.items()}
            # The last token that is read goes, unless it was the context that ended the reading.
            last = min(len(every), options["privleak_tokens"])
            found[name].append(
                {
                    **score,
                    "first": {key: value[: last - 1] for key, value in score.items()},
                    "whole": whole["log_probs"],
                    "labelled": plain.decode(read),
                    "gradient_norm": plain.gradient_norm([start], read[:-1]),
                }
            )
    other = retrain or found
    values |= membership(found.__getitem__, other.__getitem__, ("forget", "holdout"))
    there = membership(other.__getitem__, other.__getitem__, ("forget", "holdout"))
    values["privleak"] = leak(values["mia_min_k"], there["mia_min_k"])

    def of_all(some: Any) -> float:
        least_of = {n: [lowest(s["whole"], int(0.4 * len(s["whole"]))) for s in some[n]] for n in ("forget", "holdout")}
        return auc(least_of["forget"], least_of["holdout"])

    values["privleak__muse"] = leak(of_all(found), of_all(other))
    return values, found


LETTERS = "ABCD"


def tasks(plain: Plain, data: Path, options: Mapping[str, Any], retrain: Any = None) -> tuple[dict[str, float], Any]:
    """Metrics of the multiple-choice questions in ``data/questions``, and of ``data``'s texts and continuations."""
    values: dict[str, float] = {}
    for name in options["prepared"]:
        right: dict[str, list[bool]] = {"acc": [], "acc_norm": [], "acc_bytes": []}
        for row in lines(data / "questions" / f"{name}.jsonl"):
            listed = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, row["choices"], strict=True))
            prompt = f"The following are multiple choice questions (with answers) about {row['topic']}.\n\n"
            prompt += f"{row['question'].strip()}\n{listed}Answer:"
            choices = list(LETTERS)
            if options["prompt_format"] == "texts":
                prompt, choices = f"Question: {row['question']}\nAnswer:", row["choices"]
            sums = [sum(plain.score(*plain.answered(prompt, f" {text}"))["log_probs"]) for text in choices]
            for key, lengths in (
                ("acc", [1] * 4),
                ("acc_norm", [len(text) for text in choices]),
                ("acc_bytes", [len(text.encode()) for text in choices]),
            ):
                each = [value / length for value, length in zip(sums, lengths, strict=True)]
                right[key].append(each.index(max(each)) == row["answer"])
        values |= {f"{name}_{key}": mean(hits) for key, hits in right.items()}
    values["cut_contexts"] = 0
    if "plain_texts" in options["tasks"]:
        every = [row["text"] for row in lines(data / "texts.jsonl")]
        total = sum(sum(plain.score(*_alone(plain, text))["log_probs"]) for text in every)
        words, size = sum(len(re.split(r"\s+", text)) for text in every), sum(len(text.encode()) for text in every)
        values["plain_texts_word_perplexity"] = math.exp(-total / words)
        values["plain_texts_byte_perplexity"] = math.exp(-total / size)
        values["plain_texts_bits_per_byte"] = -total / size / math.log(2)
    texts = []
    if "plain_answers" in options["tasks"]:
        rows = lines(data / "answers.jsonl")
        texts = [plain.text(plain.generate(plain.encode(row["prompt"]), NEW_TOKENS, ["\n"]), ["\n"]) for row in rows]
        values["plain_answers_exact_match"] = mean([t == r["answer"] for t, r in zip(texts, rows, strict=True)])
    values["empty_generations"] = sum(not text.strip() for text in texts)
    values["repetitive_generations"] = sum(map(repetitive, texts))
    return values, None


NEW_TOKENS = 6


def _alone(plain: Plain, text: str) -> tuple[list[int], list[int]]:
    """A whole text as the harness asks for it: its own start token is predicted too, after another one."""
    ids = plain.encode(text)
    return ids[:1], ids
