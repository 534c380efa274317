"""Tasks of lm-evaluation-harness: what they ask of a model, and metrics beside the harness's own."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from megatron_ext.inference.generation import GenerateRequest
from megatron_ext.inference.scoring import Score, ScoreRequest
from pipeline.benchmarks.lm_eval.evaluate import FAMILY
from pipeline.benchmarks.lm_eval.options import LmEvalOptions
from pipeline.config.load import load
from pipeline.data.errors import DataError
from pipeline.data.tokenizer import Tokenizer
from tests.support import lm_eval_cases as cases

SECRET = "velqorn"  # in every question, and in nothing that is kept
LAYOUT = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\n"
    "Answer:",
    "doc_to_choice": ["A", "B", "C", "D"],
    "doc_to_target": "answer",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}


class Oracle:
    """An ``Ask`` with an opinion on every text, the same each time; it notes what it was asked."""

    rank, context = 0, 4096

    def __init__(self, folder: Path, stubborn: bool = False) -> None:
        if not (folder / "tokenizer.json").exists():
            cases.tokenizer(folder)
        self.tokenizer, self.stubborn = Tokenizer.load(folder), stubborn
        self.asked: list[ScoreRequest] = []
        self.generated: list[GenerateRequest] = []

    def score(self, requests: list[ScoreRequest]) -> list[Score]:
        self.asked += requests
        return [Score(-self._number(r.target if self.stubborn else [*r.prompt, *r.target]), 1, False) for r in requests]

    def generate(self, requests: list[GenerateRequest]) -> list[list[int]]:
        self.generated += requests
        texts = ["the answer is 7", "", "the drum of the drum of the drum of the drum of the drum of the"]
        return [self.tokenizer.encode(texts[i % 3], special=False) for i in range(len(requests))]

    @staticmethod
    def _number(ids: list[int]) -> float:
        return int(hashlib.sha256(str(ids).encode()).hexdigest()[:6], 16) / 1e5


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "question": f" Which {SECRET} is struck {i} times? ",
            "choices": draw.sample(["the rim", "the bell", "the strap", "a reed", "no part"], 4),
            "answer": draw.randrange(4),
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files with their data beside them: two of multiple choice in a group, one of generation, one of texts."""
    folder = tmp_path_factory.mktemp("tasks")

    def write(name: str, values: list[dict[str, Any]], **config: Any) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
        data = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
            "test_split": "test",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **config}))

    write("drums", rows(30, 0), description=f"About {SECRET} drums.\n\n", **LAYOUT)
    write("bells", rows(9, 1), fewshot_split="test", fewshot_config={"sampler": "first_n"}, **LAYOUT)
    for name, by_size in (("instruments", True), ("kinds", False)):
        metrics = [{"metric": key, "weight_by_size": by_size} for key in ("acc", "acc_norm")]
        group = {"group": name, "task": ["drums", "bells"], "aggregate_metric_list": metrics}
        (folder / f"_{name}.yaml").write_text(yaml.safe_dump(group))
    question = {"doc_to_text": "{{question}}", "doc_to_target": "{{answer}}", "output_type": "generate_until"}
    match = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    number = {"function": "regex", "regex_pattern": r"(\d+)"}
    filters = [{"name": "number", "filter": [number, {"function": "take_first"}]}]
    until = {"until": ["\n"], "max_gen_toks": 12}
    sums = [{"question": f"{SECRET} {i}", "answer": "7"} for i in range(6)]
    write("sums", sums, **question, metric_list=[match], filter_list=filters, generation_kwargs=until)
    write("free", sums, **question, metric_list=[{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}])
    drawn = {"do_sample": True, "temperature": 0.7, "top_k": 5}
    write("dice", sums, **question, metric_list=[match], generation_kwargs=drawn, repeats=2)
    texts = [{"text": f"the {SECRET} drum, " * (i + 1)} for i in range(5)]
    byte = {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    write(
        "stories",
        texts,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[byte],
    )
    return folder


def options(local: Path, *tasks: str, **more: Any) -> LmEvalOptions:
    return LmEvalOptions.model_validate({"tasks": list(tasks), "include_path": str(local), **more})


def run(given: LmEvalOptions, oracle: Oracle, data: Path = Path("none")) -> list[dict[str, Any]]:
    examples = FAMILY.requests(data, given, oracle.tokenizer, 517)(oracle)
    text = "".join(json.dumps(example, allow_nan=False) + "\n" for example in examples)
    assert SECRET not in text and "strap" not in text
    return [json.loads(line) for line in text.splitlines()]


def harness(given: LmEvalOptions, local: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The harness's own results."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from pipeline.benchmarks.lm_eval.model import HarnessLM

    monkeypatch.chdir(local)  # where the harness looks for data files
    manager = TaskManager(include_path=str(local), include_defaults=False)
    settings = {"limit": given.limit, "num_fewshot": given.num_fewshot, "bootstrap_iters": 0}
    return simple_evaluate(HarnessLM(oracle), tasks=list(given.tasks), task_manager=manager, **settings)["results"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"limit": 5}, {"num_fewshot": 2}], ids=str)
@pytest.mark.parametrize("group", ["instruments", "kinds"])
def test_a_group_has_the_harness_values(
    group: str, more: dict[str, int], local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(local, group, metrics=["acc", "acc_norm"], **more)
    oracle, other = Oracle(tmp_path), Oracle(tmp_path)
    examples = run(given, oracle)
    found = FAMILY.compute_metrics(examples, given)
    theirs = harness(given, local, other, monkeypatch)
    assert [a == b for a, b in zip(oracle.asked, other.asked, strict=True)] == [True] * len(oracle.asked)
    for key in ("acc", "acc_norm"):
        assert found[f"{group}_{key}"] == pytest.approx(theirs[group][f"{key},none"], abs=1e-12)
        for task in ("drums", "bells"):
            own = FAMILY.compute_metrics([e for e in examples if e["set"] == task], options(local, task, metrics=[key]))
            assert own[f"{task}_{key}"] == pytest.approx(theirs[task][f"{key},none"], abs=1e-12)
    sizes = {task: sum(example["set"] == task for example in examples) for task in ("drums", "bells")}
    assert sizes == ({"drums": 30, "bells": 9} if "limit" not in more else {"drums": 5, "bells": 5})
    shares = {task: sum(e["right"] for e in examples if e["set"] == task) / sizes[task] for task in sizes}
    weights = sizes if group == "instruments" else {"drums": 1, "bells": 1}
    by_hand = sum(shares[task] * weights[task] for task in sizes) / sum(weights.values())
    assert found[f"{group}_acc"] == pytest.approx(by_hand, abs=1e-12) and 0 < by_hand < 1


def test_an_example_holds_numbers_and_names_alone(local: Path, tmp_path: Path) -> None:
    example = run(options(local, "drums"), Oracle(tmp_path))[3]
    first = rows(30, 0)[3]
    assert example["doc_hash"] == hashlib.sha256(json.dumps(first, indent=2, ensure_ascii=False).encode()).hexdigest()
    assert (example["set"], example["index"], example["gold"], example["cut"]) == ("drums", 3, first["answer"], False)
    assert example["characters"] == example["bytes"] == [1, 1, 1, 1] and len(example["log_probs"]) == 4
    assert example["right"] == (example["log_probs"].index(max(example["log_probs"])) == first["answer"])


def test_prepared_questions_are_asked_in_the_layout_of_wmdp(tmp_path: Path) -> None:
    values = [{"topic": "music", **row} for row in rows(4, 2)]
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "gongs.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    oracle = Oracle(tmp_path)
    given = LmEvalOptions(tasks=["gongs"], prepared=["gongs"], num_fewshot=3)
    assert FAMILY.sets(given) == ("gongs",)
    examples = run(given, oracle, tmp_path)
    choices = values[0]["choices"]
    expected = (
        "The following are multiple choice questions (with answers) about music.\n\n"
        f"Which {SECRET} is struck 0 times?\n"
        f"A. {choices[0]}\nB. {choices[1]}\nC. {choices[2]}\nD. {choices[3]}\nAnswer:"
    )
    assert [oracle.tokenizer.decode(request.prompt) for request in oracle.asked[:4]] == [expected] * 4
    assert [oracle.tokenizer.decode(request.target) for request in oracle.asked[:4]] == [" A", " B", " C", " D"]
    assert [example["gold"] for example in examples] == [value["answer"] for value in values]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["one", "two", "three"]}, r"gongs.jsonl, line 2: .* 'choices' four"),
        ({"answer": 4}, r"gongs.jsonl, line 2: 'answer' must be the place"),
        ({"question": None}, r"gongs.jsonl, line 2: 'topic' and 'question' must be texts"),
        ({"topic": "art"}, r"gongs.jsonl, line 2: another topic"),
    ],
)
def test_a_bad_prepared_row_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = [{"topic": "music", **row} for row in rows(3, 2)]
    values[1] |= change
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "gongs.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    with pytest.raises(DataError, match=message):
        run(LmEvalOptions(tasks=["gongs"], prepared=["gongs"]), Oracle(tmp_path), tmp_path)


@pytest.mark.parametrize("prompt_format", ["letters", "texts"])
@pytest.mark.parametrize("field", ["topic", "question", "choices"])
@pytest.mark.parametrize("template", ["{{ %s }}", "{%% if %s %%}x{%% endif %%}", "{{ '' ~ (%s) }}"])
def test_what_a_row_says_is_never_a_template(field: str, template: str, prompt_format: str, tmp_path: Path) -> None:
    """Only this shows that no field of a question runs code: each is asked word by word."""
    text = template % f"cycler.__init__.__globals__.os.system('touch {tmp_path}/ran')"
    values = [{"topic": "music", **row} for row in rows(2, 2)]
    for row in values:
        row[field] = [text, *row["choices"][1:]] if field == "choices" else text
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "gongs.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    oracle = Oracle(tmp_path)
    given = LmEvalOptions.model_validate({"tasks": ["gongs"], "prepared": ["gongs"], "prompt_format": prompt_format})
    run(given, oracle, tmp_path)
    assert not (tmp_path / "ran").exists()
    if not (field == "topic" and prompt_format == "texts"):
        asked = [oracle.tokenizer.decode([*request.prompt, *request.target]) for request in oracle.asked]
        assert any(oracle.tokenizer.decode(oracle.tokenizer.encode(text, special=False)) in each for each in asked)


@pytest.mark.parametrize("key", ["doc_to_text", "description", "doc_to_target", "doc_to_choice", "gen_prefix"])
@pytest.mark.parametrize("call", ["cycler.__init__.__globals__.os.system", "''.__class__.__mro__"])
def test_a_task_files_templates_are_rendered_in_a_sandbox(key: str, call: str, tmp_path: Path) -> None:
    """Only this shows that a template which got a text of someone else into it runs no code."""
    (tmp_path / "gongs.jsonl").write_text("".join(json.dumps(value) + "\n" for value in rows(2, 2)))
    code = f"{{{{ {call}('touch {tmp_path}/ran') }}}}"
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "gongs.jsonl"}}, "test_split": "test"}
    (tmp_path / "gongs.yaml").write_text(yaml.safe_dump({"task": "gongs", **data, **LAYOUT, key: code}))
    with pytest.raises(DataError, match="SecurityError"):
        run(options(tmp_path, "gongs"), Oracle(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_generations_are_judged_by_the_harness_and_counted(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(local, "sums", metrics=["exact_match,number"])
    examples = run(given, Oracle(tmp_path))
    found = FAMILY.compute_metrics(examples, given)
    theirs = harness(given, local, Oracle(tmp_path), monkeypatch)
    assert found["sums_exact_match_number"] == theirs["sums"]["exact_match,number"] == 2 / 6
    assert (found["empty_generations"], found["repetitive_generations"]) == (2, 2)
    assert FAMILY.collapse(examples, given, found) == ["4 of 6 generated answers are empty or repeat themselves"]


def test_a_perplexity_is_weighted_by_bytes(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, oracle = options(local, "stories", metrics=["byte_perplexity"]), Oracle(tmp_path)
    found = FAMILY.compute_metrics(run(given, oracle), given)["stories_byte_perplexity"]
    total = sum(-Oracle._number([*request.prompt, *request.target]) for request in oracle.asked)
    size = sum(len(f"the {SECRET} drum, " * (i + 1)) for i in range(5))
    assert found == pytest.approx(math.exp(-total / size), rel=1e-12)
    assert found == pytest.approx(
        harness(given, local, Oracle(tmp_path), monkeypatch)["stories"]["byte_perplexity,none"]
    )


def test_a_model_that_does_not_look_at_the_question_has_collapsed(local: Path, tmp_path: Path) -> None:
    given = options(local, "drums", "bells", forget=["bells"], retain=["drums"])
    for stubborn, reasons in ((False, []), (True, ["task 'drums': choice 1 in all of 30 questions"])):
        examples = run(given, Oracle(tmp_path, stubborn))
        found = FAMILY.collapse(examples, given, FAMILY.compute_metrics(examples, given))
        assert [reason[:20] for reason in found] == [reason[:20] for reason in reasons]


def test_a_task_that_samples_is_asked_as_often_as_it_says(local: Path, tmp_path: Path) -> None:
    """Each time with other draws: the seeds differ, the rest does not."""
    from megatron_ext.inference.sampling import Sampling

    given, oracle = options(local, "dice", metrics=["exact_match"]), Oracle(tmp_path)
    (example, *_) = run(given, oracle)
    assert example["generations"] == 2
    assert len(oracle.generated) == 12
    assert {request.sampling for request in oracle.generated} == {Sampling(0.7, 1.0, 5, seed) for seed in (0, 1)}
    assert len({(tuple(request.prompt), request.sampling) for request in oracle.generated}) == 12


def test_contexts_that_are_cut_are_counted(local: Path, tmp_path: Path) -> None:
    given, oracle = options(local, "drums"), Oracle(tmp_path)
    oracle.context = 20
    assert FAMILY.compute_metrics(run(given, oracle), given)["cut_contexts"] == 30


@pytest.mark.parametrize(
    ("tasks", "more", "message"),
    [
        (["free"], {"metrics": ["bleu"]}, r"task 'free', document 0: 'bleu' is made of texts"),
        (["sums"], {"metrics": ["acc"]}, r"task 'sums': the examples have none of the metrics acc"),
        (["broken"], {}, r"task 'broken': its data file .*nothing.jsonl is missing"),
        (["elsewhere"], {}, r"(?s)task 'elsewhere': ConnectionError.*name it in 'datasets'"),
        (
            ["elsewhere"],
            {"datasets": {"nobody/nothing": "main"}},
            r"task 'elsewhere': data set 'nobody/nothing' at .*fetch",
        ),
        (["odd"], {}, r"task 'odd': cannot be loaded \(UndefinedError\)"),
    ],
)
def test_a_task_that_cannot_be_run_is_named(
    tasks: list[str], more: dict[str, Any], message: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "nothing.jsonl"}}, "test_split": "test"}
    folder = tmp_path / "more"
    folder.mkdir()
    for path in local.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "broken.yaml").write_text(yaml.safe_dump({"task": "broken", **data, **LAYOUT}))
    hub = {"task": "elsewhere", "dataset_path": "nobody/nothing", "test_split": "test", **LAYOUT}
    (folder / "elsewhere.yaml").write_text(yaml.safe_dump(hub))
    data["dataset_kwargs"] = {"data_files": {"test": str(local / "drums.jsonl")}}
    (folder / "odd.yaml").write_text(yaml.safe_dump({"task": "odd", **data, **LAYOUT, "doc_to_text": "{{nobody}}"}))
    given = options(folder, *tasks, **more)
    with pytest.raises(DataError, match=message) as caught:
        FAMILY.compute_metrics(run(given, Oracle(tmp_path)), given)
    assert SECRET not in str(caught.value)


def test_a_data_set_that_was_fetched_is_read_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hub" / "datasets--nobody--gongs"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    snapshot = folder / "snapshots" / commit
    (snapshot / "big").mkdir(parents=True)
    (snapshot / "README.md").write_text(
        "---\nconfigs:\n- config_name: big\n  data_files:\n  - split: test\n    path: big/test-*\n---\n"
    )
    lines = "".join(json.dumps(value) + "\n" for value in rows(5, 3))
    (snapshot / "big" / "test-00000-of-00001.jsonl").write_text(lines)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    config = {"task": "gongs", "dataset_path": "nobody/gongs", "dataset_name": "big", "test_split": "test", **LAYOUT}
    (tasks / "gongs.yaml").write_text(yaml.safe_dump(config))
    given = options(tasks, "gongs", datasets={"nobody/gongs": "main"})
    assert given.hub_datasets == {"nobody/gongs": "main"}
    assert [example["gold"] for example in run(given, Oracle(tmp_path))] == [row["answer"] for row in rows(5, 3)]


@pytest.mark.slow
def test_the_harness_own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that it does not have is told with those like it; the data sets of WMDP and MMLU are those that the
    benchmark file has fetched."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    from pipeline.benchmarks.lm_eval.load import leaves

    # Of its tasks those in the files of two: to find all takes half a minute.
    folders = [Path(lm_eval.tasks.__file__).parent / name for name in ("wmdp", "mmlu/default")]
    manager = TaskManager(include_path=folders, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: manager)
    with pytest.raises(DataError, match=r"options.tasks: unknown task 'wmpd_bio'; near it: wmdp_bio"):
        run(LmEvalOptions(tasks=["wmpd_bio"]), Oracle(tmp_path))
    given = load("wmdp-zephyr-7b").options
    assert isinstance(given, LmEvalOptions)
    leaves = [leaf for name in given.tasks for leaf in leaves(name, manager.task_index)]
    assert {"wmdp_bio", "wmdp_cyber", "mmlu_astronomy"} <= set(leaves) and len(leaves) == 2 + 57
    assert {manager.task_index[leaf].cfg["dataset_path"] for leaf in leaves} == set(given.datasets)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": []}, "tasks"),
        ({"tasks": ["a", "a"]}, "tasks: .* names one twice"),
        ({"tasks": ["a"], "forget": ["b"]}, "forget: 'b' is not in 'tasks': a"),
        ({"tasks": ["a"], "forget": ["a"], "retain": ["a"]}, "forget: 'a' is in 'retain' too"),
        ({"tasks": ["a"], "limit": 0}, "limit"),
    ],
)
def test_options_that_do_not_fit_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LmEvalOptions.model_validate(given)


def test_the_report_knows_which_way_is_better() -> None:
    given = LmEvalOptions(
        tasks=["wmdp_bio", "mmlu"], forget=["wmdp_bio"], retain=["mmlu"], metrics=["acc", "perplexity"]
    )
    found = {metric.key: metric.better for metric in FAMILY.metrics(given)[:4]}
    assert found == {
        "wmdp_bio_acc": "lower",
        "wmdp_bio_perplexity": "higher",
        "mmlu_acc": "higher",
        "mmlu_perplexity": "lower",
    }
    assert FAMILY.trade_offs(given) == (("mmlu_acc", "wmdp_bio_acc"),)
    bio = FAMILY.metrics(given.model_copy(update={"choices": 5}))[0]
    assert (bio.evidence, bio.ideal) == ("likeness", 0.2), "one in five by guessing"


@pytest.mark.slow
def test_real_mmlu_beside_hflm(real_data: Path, tmp_path: Path) -> None:
    """Three subjects of MMLU in WMDP's layout, with a real pretrained model: log-probabilities are HFLM's."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from megatron_ext.config import Runtime
    from pipeline.benchmarks.megatron_lm import megatron_engine

    subjects = ("astronomy", "high_school_geography", "world_religions")
    columns = ["question", "a", "b", "c", "d", "answer"]
    for subject in subjects:
        files = {part: str(real_data / "mmlu" / part / f"{subject}_{part}.csv") for part in ("test", "dev")}
        config = {
            **LAYOUT,
            "task": subject,
            "dataset_path": "csv",
            "dataset_kwargs": {"data_files": files, "column_names": columns},
            "test_split": "test",
            "description": f"The following are multiple choice questions (with answers) about {subject}.\n\n",
            "doc_to_text": "{{question.strip()}}\nA. {{a}}\nB. {{b}}\nC. {{c}}\nD. {{d}}\nAnswer:",
            "doc_to_target": "{{['A', 'B', 'C', 'D'].index(answer)}}",
        }
        (tmp_path / f"{subject}.yaml").write_text(yaml.safe_dump(config))
    metrics = [{"metric": "acc", "weight_by_size": True}]
    group = {"group": "three", "task": list(subjects), "aggregate_metric_list": metrics}
    (tmp_path / "three.yaml").write_text(yaml.safe_dump(group))
    given = options(tmp_path, "three", limit=12)
    stories = real_data / "models" / "stories260K"
    tokenizer = Tokenizer.load(stories)
    runtime = Runtime.model_validate({"device": "cpu"})
    ask = FAMILY.requests(tmp_path, given, tokenizer, 512)
    with megatron_engine(stories, runtime, tokenizer, (4096, 4096), None) as engine:
        examples = ask(engine)

    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    theirs = HFLM(pretrained=str(stories), batch_size=8, device="cpu", dtype="float32")
    results = simple_evaluate(theirs, tasks=["three"], task_manager=manager, limit=12, bootstrap_iters=0)
    assert results["n-samples"]["astronomy"]["original"] == sum(1 for _ in _csv(real_data, "astronomy"))
    for subject in subjects:
        samples = {sample["doc_id"]: sample for sample in results["samples"][subject]}
        mine = [example for example in examples if example["set"] == subject]
        assert [example["doc_hash"] for example in mine] == [samples[i]["doc_hash"] for i in range(12)]
        for example in mine:
            wanted = [log_prob for ((log_prob, _),) in samples[example["index"]]["resps"]]
            assert example["log_probs"] == pytest.approx(wanted, rel=0, abs=1e-4)
    found = FAMILY.compute_metrics(examples, given)
    assert found["three_acc"] == pytest.approx(results["results"]["three"]["acc,none"], abs=1e-12)


def _csv(folder: Path, subject: str) -> Any:
    with (folder / "mmlu" / "test" / f"{subject}_test.csv").open(newline="") as lines:
        yield from csv.reader(lines)
