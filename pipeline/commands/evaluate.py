"""``python -m pipeline evaluate``: any Hugging Face model on a benchmark, without a workflow.

Runs steps of the workflow one after the other, each from a specification that it leaves in the step's folder below
``--out``: what fetches, ``prepare`` with the model's own tokenizer, and ``evaluate``, whose folder is ``--out`` itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import yaml

from megatron_ext.atomic_files import write_json
from megatron_ext.checkpoint.fingerprint import model_fingerprint
from megatron_ext.config import Layout, Runtime
from megatron_ext.specs import StepSpec, read
from pipeline.benchmarks import Family, Metric, Options, data_family, family
from pipeline.benchmarks.records import EVALUATION, EvaluationRecord, is_complete
from pipeline.commands.options import laid_on
from pipeline.config import sizing
from pipeline.config.load import CONFIGS
from pipeline.config.located_yaml import ConfigError, Document, check, hint
from pipeline.config.located_yaml import read as read_document
from pipeline.config.schema import Benchmark
from pipeline.config.sizing import Shape
from pipeline.data.errors import DataError
from pipeline.data.json_files import read_object
from pipeline.data.settings import (
    BadRows,
    DataSource,
    FetchedSource,
    FolderSource,
    FolderTokenizer,
    HubSource,
    TemplateName,
)
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokenizer import digest as tokenizer_digest
from pipeline.hub import local_files as files
from pipeline.launch import ranks
from pipeline.specs import RETRAIN, EvaluateSpec, FetchDatasetsSpec, FetchDataSpec, FetchSpec, PrepareSpec
from pipeline.steps.programs import source_files
from pipeline.workflow.jobs import canonical

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
INPUTS = "inputs.json"  # digests of everything that an evaluation was computed from
SIDES = {"tp": "tensor", "pp": "pipeline", "dp": "data", "tensor": "tensor", "pipeline": "pipeline", "data": "data"}
IDEALS = {"higher": "higher is better", "lower": "lower is better", "one": "ideal: 1", "zero": "ideal: 0", None: ""}
# What in a chat template tells which of our templates its model was tuned with, the most specific first.
CHAT_MARKS: dict[str, TemplateName] = {"<|start_header_id|>": "llama-3", "<|assistant|>": "zephyr", "[INST]": "llama-2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER|NAME", help="a Hugging Face folder, or a model's name on the hub")
    add("--revision", help="commit, tag or branch of a model on the hub")
    add("--benchmark", required=True, help="a file of workflow_configs/benchmarks, by name or path")
    add("--split", help="forget split; may be left out where the benchmark has one")
    add("--data-root", type=Path, metavar="DIR", help="local folder of the benchmark's files, instead of the hub")
    add("--retain-evaluation", type=Path, metavar="FILE", help="evaluation.json of retrain, or its folder")
    add("--as-retrain", action="store_true", help="the model is retrain: what others are compared with")
    add(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the benchmark's family, as YAML",
    )
    add("--template", choices=get_args(TemplateName), help="how questions are put; default: by the tokenizer")
    add("--bad-rows", choices=get_args(BadRows), default="error", help="what becomes of rows that are too long")
    add("--layout", default="", metavar="tp=N,pp=N,dp=N", help="tensor, pipeline and data-parallel ranks; default: 1")
    add("--precision", choices=["fp32", "bf16"], default="fp32")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--threads", type=int, default=1, help="CPU threads of each rank (default: %(default)s)")
    add("--token-budget", type=int, default=16384, help="tokens of one forward pass (default: %(default)s)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything that is written")


@dataclass(frozen=True)
class Request:
    """What was asked for, checked as far as it can be before anything is fetched. ``explicit``: keys of options that
    were given on the command line."""

    benchmark: Benchmark
    split: str
    source: DataSource
    options: Options
    explicit: frozenset[str]
    layout: Layout
    model: Path | str  # a folder, or a name on the hub
    retain: Path | None  # a folder

    @property
    def family(self) -> Family:
        return family(self.options.family)


def main(given: argparse.Namespace) -> int:
    """The exit status: 0, 2 for what cannot be asked for, else that of the step that failed."""
    # Here and below: what only steps need is not there where experiments are planned, which imports this module too.
    from pipeline.steps.prepare import is_current

    try:
        request = _request(given)
        out = given.out.absolute()
        model = request.model
        if isinstance(model, str):
            status = _run(FetchSpec(hub=model, revision=given.revision, output=out / "model"))
            if status:
                return status
            model = out / "model" / "checkpoint"
        shape = _model_shape(model, request)
        layout = _fitting(request.layout, shape, given.device)
        template, why = (given.template, "as asked") if given.template else _template(model)
        print("\n".join(_summary(request, model, shape, layout, template, why)), flush=True)
        if request.options.hub_datasets:
            status = _run(FetchDatasetsSpec(datasets=request.options.hub_datasets, output=out / "datasets"))
            if status:
                return status
        source = request.source
        if isinstance(source, HubSource):
            files = [list(names) for names in _data_files(request)]
            status = 0
            if files:
                spec = FetchDataSpec(
                    repository=source.repository, revision=source.revision, files=files, output=out / "source"
                )
                status = _run(spec)
            if status:
                return status
            source = FetchedSource(path=out / "source")
        prepared = PrepareSpec(
            family=request.benchmark.family,
            source=source,
            forget_split=request.split,
            sets=list(request.family.sets(request.options)),
            training=False,
            tokenizer=FolderTokenizer(path=model),
            template=template,
            max_length=shape.context,
            bad_rows=given.bad_rows,
            output=out / "data",
        )
        if is_current(prepared):
            print(f"data       {prepared.output}: unchanged, not prepared again", flush=True)
        else:
            status = _run(prepared)
            if status:
                return status
        return _evaluate(
            EvaluateSpec(
                options=request.options,
                benchmark=request.benchmark.name,
                split=request.split,
                model_id=RETRAIN if given.as_retrain else str(request.model),
                checkpoint=model,
                data=prepared.output,
                retain_evaluation=request.retain,
                token_budget=given.token_budget,
                runtime=Runtime(layout=layout, device=given.device, precision=given.precision, threads=given.threads),
                output=out,
            )
        )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (DataError, OSError) as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return 1


def _evaluate(spec: EvaluateSpec) -> int:
    """Run the step unless ``spec.output`` holds its results already, and print them."""
    from pipeline.steps.evaluate import read_inputs

    inputs = _inputs(spec)
    state = _state(spec, inputs)
    if state == "finished":
        print(f"evaluation {spec.output}: finished before, and nothing has changed: not run again", flush=True)
    else:
        if state != "new":
            print(f"evaluation {spec.output}: {state}", flush=True)
        # A folder with an evaluation.json is complete: the old one is not the new one's.
        (spec.output / "evaluation.json").unlink(missing_ok=True)
        read_inputs(spec)
        write_json(spec.output / INPUTS, inputs)
        status = _run(spec)
        if status:
            return status
    print("\n".join(results(spec)))
    return 0


def _inputs(spec: EvaluateSpec) -> dict[str, str]:
    """Digests of what an evaluation is computed from beside its specification."""
    from pipeline.data import cache

    code = hashlib.sha256()
    for file in source_files(spec):
        code.update(f"{file.name}\n{cache.sha256(file)}\n".encode())
    found = {
        "model": model_fingerprint(spec.checkpoint),
        "tokenizer": tokenizer_digest(spec.data / "tokenizer"),
        "code": code.hexdigest(),
    }
    for name in family(spec.options.family).sets(spec.options):
        found[f"data/{name}"] = cache.sha256(spec.data / "evaluation" / f"{name}.jsonl")
    if spec.retain_evaluation is not None:
        for name in ("evaluation.json", "examples.jsonl"):
            file = spec.retain_evaluation / name
            if not file.is_file():
                raise DataError(f"--retain-evaluation: {file} is missing")
            found[f"retain_evaluation/{name}"] = cache.sha256(file)
    return found


def _state(spec: EvaluateSpec, inputs: dict[str, str]) -> str:
    """``new``, ``finished``, or what else an earlier run has left in the output, in words."""
    folder = spec.output
    if not (folder / "spec.yaml").is_file():
        return "new"
    try:
        before = read(folder / "spec.yaml", EvaluateSpec)
        known = json.loads((folder / INPUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return "what an earlier run left cannot be read: evaluated again"
    names = [name for name in type(spec).model_fields if getattr(before, name) != getattr(spec, name)]
    names += [name for name in {**known, **inputs} if known.get(name) != inputs.get(name)]
    if names:
        return f"other than before: {', '.join(names)}; evaluated again"
    return "finished" if is_complete(folder) else "an earlier run did not finish: going on"


def results(spec: EvaluateSpec) -> list[str]:
    """The headline metrics of an evaluation as a table, what was flagged, and where the files are."""
    record = EvaluationRecord.read(spec.output / EVALUATION)
    summary = read_object(spec.output / "summary.json")
    values = {key: value for key, value in record.metrics.items() if value is not None}
    found = [m for m in family(spec.options.family).metrics(spec.options) if m.key in values]
    lines = ["", *table([m for m in found if m.headline] or found, values), ""]
    lines += [f"warning: the model has collapsed: {reason}" for reason in summary.get("collapsed_because", [])]
    for key, what in (
        ("empty_generations", "empty answers"),
        ("repetitive_generations", "answers that repeat themselves"),
        ("cut_generations", "answers cut short by the model's context"),
    ):
        if summary.get(key):
            lines.append(f"note: {summary[key]} {what}")
    examples = sum(record.settings.examples.values())
    return [
        *lines,
        f"{spec.output / 'evaluation.json'}: all {len(values)} metrics and their settings",
        f"{spec.output / 'examples.jsonl'}: raw results of {examples} examples, for `python -m pipeline metrics`",
    ]


def table(metrics: Sequence[Metric], values: dict[str, float]) -> list[str]:
    """Markdown: a row a metric."""
    rows = [[m.title, f"`{m.key}`", f"{values[m.key]:.4g}", IDEALS[m.better]] for m in metrics]
    rows.insert(0, ["Metric", "Key", "Value", ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]


def _request(given: argparse.Namespace) -> Request:
    problems: list[str] = []
    layout = _layout(given.layout, problems)
    for name in ("threads", "token_budget"):
        if getattr(given, name) < 1:
            problems.append(f"--{name.replace('_', '-')}: {getattr(given, name)}; at least 1 is needed")
    model = _model(given, problems)
    retain = _retain(given, problems)
    benchmark, document = _benchmark(given.benchmark, problems)
    if benchmark is None or document is None:
        raise ConfigError(problems)
    split = _split(given.split, benchmark, problems)
    options = laid_on(document.at("options"), given.option, benchmark.family, problems)
    explicit = frozenset(text.partition("=")[0].strip() for text in given.option)
    if options is not None and retain is None and not given.as_retrain:
        options = _without_retrain(options, explicit, problems)
    source = _source(given, benchmark, problems)
    if problems or layout is None or options is None or split is None:
        raise ConfigError(problems)
    request = Request(benchmark, split, source, options, explicit, layout, model, retain)
    if isinstance(source, FolderSource):
        missing = files.missing_data(source.path, _data_files(request))
        if missing:
            raise ConfigError([f"--data-root: {message}" for message in missing])
    return request


def _model(given: argparse.Namespace, problems: list[str]) -> Path | str:
    folder = Path(given.model).expanduser()
    if folder.exists():
        if given.revision is not None:
            problems.append(f"--revision: {given.model} is a folder; only a model on the hub has revisions")
        fault = files.missing_model_files(folder)
        if fault:
            problems.append(f"--model: {str(folder)!r}: {fault}")
        return folder.absolute()
    if not HUB_NAME.fullmatch(given.model):
        problems.append(f"--model: there is no folder {given.model!r}, and it is not a name on the hub (owner/name)")
    return given.model


def _retain(given: argparse.Namespace, problems: list[str]) -> Path | None:
    """The folder of retrain's evaluation."""
    path = given.retain_evaluation
    if path is None:
        return None
    if given.as_retrain:
        problems.append("--retain-evaluation: a model that is retrain itself is compared with nothing else")
    path = path.expanduser().absolute()
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name not in ("evaluation.json", "examples.jsonl"):
        problems.append(f"--retain-evaluation: {path.name!r} is not allowed: evaluation.json, or the folder it is in")
    elif not (folder / "evaluation.json").is_file():
        problems.append(f"--retain-evaluation: {folder / 'evaluation.json'} is missing")
    return folder


def _benchmark(name: str, problems: list[str]) -> tuple[Benchmark | None, Document | None]:
    folder = CONFIGS / "benchmarks"
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        problems.append(f"--benchmark: no file and no known name: {name!r}{hint(name, known)}")
        return None, None
    try:
        document = read_document(path)
    except ConfigError as error:
        problems += error.problems
        return None, None
    return check(Benchmark, document, problems), document


def _split(name: str | None, benchmark: Benchmark, problems: list[str]) -> str | None:
    known = list(benchmark.splits)
    if name is None and len(known) == 1:
        return known[0]
    if name not in known:
        what = (
            "is missing; allowed: " + ", ".join(known) if name is None else f"unknown split {name!r}{hint(name, known)}"
        )
        problems.append(f"--split: {what}")
        return None
    allowed = data_family(benchmark.family).splits
    if name not in allowed:
        problems.append(f"--split: the family {benchmark.family!r} has no such split{hint(name, list(allowed))}")
    return name


def _without_retrain(options: Options, explicit: frozenset[str], problems: list[str]) -> Options:
    """Options that need no retrain: without what the benchmark file asks for, but never without what the user does."""
    why = options.needs_retrain
    if why is None:
        return options
    reduced = options.without_retrain()
    changed = [key for key in type(options).model_fields if getattr(options, key) != getattr(reduced, key)]
    asked = sorted(explicit.intersection(changed))
    if reduced.needs_retrain or asked:
        where = f"--option {', '.join(asked)}" if asked else "--retain-evaluation"
        problems.append(f"{where}: no evaluation of retrain is given: {why}")
        return options
    now = ", ".join(f"{key} = {json.dumps(reduced.model_dump(mode='json')[key])}" for key in changed)
    print(f"note: without --retain-evaluation nothing is compared with retrain, so {now}: {why}", flush=True)
    return reduced


def _source(given: argparse.Namespace, benchmark: Benchmark, problems: list[str]) -> DataSource:
    source = benchmark.source
    kinds = data_family(benchmark.family).kinds
    if source.kind not in kinds:
        what = f"the family {benchmark.family!r} has no source {source.kind!r}{hint(source.kind, list(kinds))}"
        problems.append(f"--benchmark: {what}")
    if given.data_root is None:
        return source
    if not isinstance(source, HubSource | FolderSource):
        problems.append(f"--data-root: {benchmark.name!r} makes its own data: a folder has no meaning here")
        return source
    return FolderSource(path=given.data_root.expanduser().absolute())


def _data_files(request: Request) -> list[tuple[str, ...]]:
    sets = request.family.sets(request.options)
    return data_family(request.benchmark.family).files(request.split, sets, training=False)


def _layout(text: str, problems: list[str]) -> Layout | None:
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if name not in SIDES:
            problems.append(f"--layout: unknown side {name!r}{hint(name, list(SIDES))}")
        elif not equals or not number.isdecimal() or int(number) < 1:
            problems.append(f"--layout: {part!r}: expected {name}=N with N of at least 1")
        elif SIDES[name] in sizes:
            problems.append(f"--layout: {SIDES[name]} is given twice")
        else:
            sizes[SIDES[name]] = int(number)
    return None if any(problem.startswith("--layout") for problem in problems) else Layout(**sizes)


def _model_shape(model: Path, request: Request) -> Shape:
    """The model's sizes; raises ``ConfigError`` where it cannot be run or its tokenizer does not fit it."""
    config = files.architecture(model)
    if config is None:
        raise ConfigError([f"--model: {model / 'config.json'} is not a JSON object"])
    try:
        shape = Shape.of(config)
    except (ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError([f"--model: {model / 'config.json'}: {what}"]) from None
    size = Tokenizer.load(model).vocab_size
    if size > shape.vocabulary:
        message = f"its tokenizer has {size} ids, but vocab_size of its config.json is {shape.vocabulary}"
        raise ConfigError([f"--model: {model}: {message}: they do not fit"])
    new = request.family.cost(request.options, 1).new_tokens
    if new >= shape.context:
        raise ConfigError([f"--option: an answer may have {new} new tokens; the model's context is {shape.context}"])
    return shape


def _fitting(layout: Layout, shape: Shape, device: str) -> Layout:
    """The layout with its pipeline split, where layers do not divide evenly: the first stages have one more."""
    if layout.pipeline_split is None and layout.pipeline <= shape.layers and shape.layers % layout.pipeline:
        each, more = divmod(shape.layers, layout.pipeline)
        split = [each + (stage < more) for stage in range(layout.pipeline)]
        layout = layout.model_copy(update={"pipeline_split": split})
    found = [*sizing.layout_problems(layout, shape), *filter(None, [sizing.device_problem(layout, device)])]
    if found:
        raise ConfigError([f"--layout: {message}" for message in found])
    return layout


def _template(model: Path) -> tuple[TemplateName, str]:
    """The template that a model's tokenizer speaks for, and why."""
    text = _chat_template(model)
    if not text:
        return "plain", "the tokenizer has no chat template"
    for mark, name in CHAT_MARKS.items():
        if mark in text:
            return name, f"the tokenizer's chat template has {mark}"
    return "plain", "the tokenizer's chat template is none of ours; --template chooses another"


def _chat_template(model: Path) -> str:
    """The text of a tokenizer's chat templates; empty where it has none."""
    file, config = model / "chat_template.jinja", model / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    return found if isinstance(found, str) else json.dumps(found) if found else ""


def _summary(
    request: Request, model: Path, shape: Shape, layout: Layout, template: TemplateName, why: str
) -> list[str]:
    source = ", ".join(f"{k} {v}" for k, v in request.source.model_dump(mode="json", exclude_none=True).items())
    split = f", split {layout.pipeline_split}" if layout.pipeline_split else ""
    return [
        f"model      {request.model}, {shape.parameters / 1e6:.4g} million parameters",
        f"benchmark  {request.benchmark.title}, {request.split}; {source}",
        f"options    {json.dumps(request.options.model_dump(mode='json', exclude={'family'}))}",
        f"template   {template}: {why}",
        f"layout     {sizing.number_of(layout.ranks, 'rank')}: tensor {layout.tensor} x pipeline {layout.pipeline} x "
        f"data {layout.data}{split}",
    ]


def _run(spec: StepSpec) -> int:
    """Run a step in a process of its own; its exit status."""
    command = [sys.executable, "-m", "pipeline.launch", str(spec.output / "spec.yaml"), canonical(spec)]
    return ranks.supervise(command, ranks.to_child)
