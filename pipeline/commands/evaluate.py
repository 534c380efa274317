"""``python -m pipeline evaluate``: any Hugging Face model on a benchmark, without a workflow.

The model is the target of an experiment without methods, which is made in memory and planned as any other. Its jobs run
one after the other, each from a specification that it leaves in its folder below ``--out``: what fetches, ``prepare``
with the model's own tokenizer, and ``evaluate``, whose folder is ``--out`` itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, get_args

import yaml

from megatron_ext.atomic_files import write_json
from megatron_ext.checkpoint.fingerprint import model_fingerprint
from megatron_ext.config import Layout, RuntimeSettings
from megatron_ext.specs import StepSpec, read
from pipeline.benchmarks import family
from pipeline.benchmarks.records import EVALUATION, EXAMPLES, is_complete
from pipeline.commands import results
from pipeline.commands.given_model import fitting_layout, shape_of
from pipeline.commands.request import Request, read_request
from pipeline.config import sizing
from pipeline.config.experiment import Config
from pipeline.config.located_yaml import ConfigError
from pipeline.config.model_schema import Checkpoints, Model
from pipeline.config.schema import DataSettings, Evaluation, Experiment
from pipeline.config.sizing import Shape
from pipeline.data.chat_templates import rendered, template_of
from pipeline.data.errors import DataError, printable
from pipeline.data.settings import BadRows, PromptTemplate, TemplateName
from pipeline.data.tokenizer import digest as tokenizer_digest
from pipeline.launch import ranks
from pipeline.specs import RETRAIN, EvaluateSpec, FetchSpec, PrepareSpec
from pipeline.steps.programs import source_files
from pipeline.workflow.data_jobs import fetch_model_job
from pipeline.workflow.jobs import canonical
from pipeline.workflow.paths import TARGET, EvaluationPaths
from pipeline.workflow.plan import Plan

INPUTS = "inputs.json"  # what the finished evaluation was computed from, and which one that is, by digests
UNREADABLE = "what an earlier run left cannot be read: evaluated again"
GIVEN = "given"  # the name of the model and of the experiment that are made in memory

USAGE = """
unlearn evaluate --model my-model --benchmark tofu --split forget10 --out DIR
unlearn evaluate --model owner/name --benchmark tofu --split forget10 --as-retrain --out DIR   retrain's evaluation
unlearn evaluate --model my-model --benchmark tofu --split forget10 --retain-evaluation DIR --layout tp=2 --out DIR2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER|NAME", help="a Hugging Face folder, or a model's name on the hub")
    about = "LoRA adapters that belong to the model, as peft writes them"
    add("--adapter", type=Path, metavar="FOLDER", help=about)
    add("--revision", help="commit, tag or branch of a model on the hub")
    add("--benchmark", required=True, help="a file of workflow_configs/benchmarks, by name or path")
    add("--split", help="forget split; may be left out where the benchmark has one")
    add("--data-root", type=Path, metavar="DIR", help="local folder of the benchmark's files, instead of the hub")
    retain = "evaluation.json of retrain, its folder, or open-unlearning's TOFU_EVAL.json or MUSE_EVAL.json of it"
    add("--retain-evaluation", type=Path, metavar="FILE", help=retain)
    add("--as-retrain", action="store_true", help="the model is retrain: what others are compared with")
    option = "a setting of the benchmark's family, as YAML"
    add("--option", action="append", default=[], metavar="KEY=VALUE", help=option)
    templates = [*get_args(TemplateName), "tokenizer"]
    add("--template", choices=templates, help="how questions are put; default: by the tokenizer")
    add("--bad-rows", choices=get_args(BadRows), default="error", help="what becomes of rows that are too long")
    add("--layout", default="", metavar="tp=N,pp=N,dp=N", help="tensor, pipeline and data-parallel ranks; default: 1")
    add("--precision", choices=["fp32", "bf16"], default="fp32")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--threads", type=int, default=1, help="CPU threads of each rank (default: %(default)s)")
    add("--token-budget", type=int, default=16384, help="tokens of one forward pass (default: %(default)s)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything that is written")


def main(given: argparse.Namespace) -> int:
    """Evaluate the model.

    Returns:
        The exit status: 0, 2 for what cannot be asked for, else that of the step that failed.
    """
    try:
        request = read_request(given)
        paths = EvaluationPaths(given.out.absolute(), request.benchmark.name, model_folder=request.folder)
        if request.folder is None:
            status = _run(fetch_model_job(paths, TARGET, request.checkpoint).spec)
            if status:
                return status
        config = _experiment(given, request, paths.checkpoint(TARGET))
        model_id = RETRAIN if given.as_retrain else request.name
        for job in Plan(config, paths).jobs.values():
            status = _job(job.spec, request, model_id)
            if status:
                return status
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (DataError, OSError) as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return 1
    return 0


def _experiment(given: argparse.Namespace, request: Request, model: Path) -> Config:
    """The experiment that evaluates the model in a folder and does nothing else; prints what it is.

    Raises:
        ConfigError: The model does not fit what was asked for.
    """
    shape = shape_of(model, request.family.cost(request.options, 1).new_tokens)
    layout = fitting_layout(request.layout, shape, given.device)
    template, why = (given.template, "as asked") if given.template else _template(request, model)
    print(printable("\n".join(_summary(request, shape, layout, f"{template}: {why}"))), flush=True)
    put: PromptTemplate = rendered(model) if template == "tokenizer" else template
    # Not validated: it has no methods, which no experiment of a file may be without.
    experiment = Experiment.model_construct(
        name=GIVEN,
        title=request.benchmark.title,
        benchmark=request.benchmark.name,
        split=request.split,
        model=GIVEN,
        methods=[],
        layout=layout,
        data=DataSettings(max_length=shape.context, bad_rows=given.bad_rows),
        evaluation=Evaluation(token_budget=given.token_budget),
        runtime=RuntimeSettings(device=given.device, precision=given.precision, threads=given.threads),
    )
    target = Checkpoints(target=request.checkpoint)
    described = Model(name=GIVEN, title=request.name, template=template, checkpoints=target)
    source, options = request.source, request.options
    return Config(experiment, request.benchmark, described, (), layout, source, options, shape, template=put)


def _template(request: Request, model: Path) -> tuple[TemplateName, str]:
    """As ``template_of``; open-unlearning's models without a chat template were tuned with a form of its own."""
    template, why = template_of(model)
    if template == "plain" and (request.checkpoint.hub or "").startswith("open-unlearning/"):
        return "plain-open-unlearning", f"{why}, and the model is open-unlearning's"
    return template, why


def _summary(request: Request, shape: Shape, layout: Layout, template: str) -> list[str]:
    source = ", ".join(f"{k} {v}" for k, v in request.source.model_dump(mode="json", exclude_none=True).items())
    split = f", split {layout.pipeline_split}" if layout.pipeline_split else ""
    return [
        f"model      {request.name}, {shape.parameters / 1e6:.4g} million parameters",
        f"benchmark  {request.benchmark.title}, {request.split}; {source}",
        f"options    {json.dumps(request.options.model_dump(mode='json', exclude={'family'}))}",
        f"template   {template}",
        f"layout     {sizing.number_of(layout.ranks, 'rank')}: tensor {layout.tensor} x pipeline {layout.pipeline} x "
        f"data {layout.data}{split}",
    ]


def _job(spec: StepSpec, request: Request, model_id: str) -> int:
    """Run a job of the plan, unless what it makes is there already; its exit status."""
    # What only steps need is not there where experiments are planned, which imports this module too.
    from pipeline.steps.prepare import is_current

    if isinstance(spec, FetchSpec):
        return 0  # the model is a folder, or was fetched before it could be looked at
    if isinstance(spec, PrepareSpec) and is_current(spec):
        print(f"data       {spec.output}: unchanged, not prepared again", flush=True)
        return 0
    if isinstance(spec, EvaluateSpec):
        return _evaluate(spec.model_copy(update={"model_id": model_id, "retain_evaluation": request.retain}))
    return _run(spec)


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
        read_inputs(spec)
        status = _run(spec)
        if status:
            return status
        _remember(spec, inputs)
    print(printable("\n".join(results.lines(spec))))
    return 0


def _remember(spec: EvaluateSpec, inputs: dict[str, str]) -> None:
    """Keep that the evaluation in ``spec.output`` is that of ``spec`` and of ``inputs``, so that it is not run again.

    Not before its end: another command, which is refused because a run is alive, must not say that of its results.

    Raises:
        DataError: Another run has begun there since.
    """
    from pipeline.data import cache

    try:
        evaluation = cache.sha256(spec.output / EVALUATION)
        ran = json.loads((spec.output / "provenance.json").read_text(encoding="utf-8"))["spec"]
    except FileNotFoundError:
        ran = None
    if ran != _values(spec):
        raise DataError(f"{spec.output}: another run has begun there since this one ended, and its results are gone")
    if _inputs(spec) == inputs:
        write_json(spec.output / INPUTS, {"spec": ran, "evaluation": evaluation, **inputs})
    else:
        print(f"evaluation {spec.output}: its model, data or code changed meanwhile: run it again", file=sys.stderr)


def _values(spec: EvaluateSpec) -> dict[str, Any]:
    """The specification as it is read back from JSON."""
    values: dict[str, Any] = json.loads(canonical(spec))
    return values


def _inputs(spec: EvaluateSpec) -> dict[str, str]:
    """Digests of what an evaluation is computed from beside its specification."""
    from pipeline.data import cache

    code = hashlib.sha256()
    for file in source_files(spec):
        code.update(f"{file.name}\n{cache.sha256(file)}\n".encode())
    digests = {
        "model": model_fingerprint(spec.checkpoint),
        "tokenizer": tokenizer_digest(spec.data / "tokenizer"),
        "code": code.hexdigest(),
    }
    for name in family(spec.options.family).sets(spec.options):
        digests[f"data/{name}"] = cache.sha256(spec.data / "evaluation" / f"{name}.jsonl")
    if spec.retain_evaluation is not None:
        for name in (EVALUATION, EXAMPLES):
            file = spec.retain_evaluation / name
            if not file.is_file():
                raise DataError(f"--retain-evaluation: {file} is missing")
            digests[f"retain_evaluation/{name}"] = cache.sha256(file)
    return digests


def _state(spec: EvaluateSpec, inputs: dict[str, str]) -> str:
    """``new``, ``finished``, or what else an earlier run has left in the output, in words."""
    from pipeline.data import cache

    folder = spec.output
    if not (folder / "spec.yaml").is_file():
        return "new"
    complete, wanted = is_complete(folder), {**_values(spec), **inputs}
    try:
        if complete:
            known = json.loads((folder / INPUTS).read_text(encoding="utf-8"))
            if known.pop("evaluation") != cache.sha256(folder / EVALUATION):
                return UNREADABLE  # of another evaluation: a run was killed after its end
            known = {**known.pop("spec"), **known}
        else:  # the answers that it left are told from others where they are read
            known = {**_values(read(folder / "spec.yaml", EvaluateSpec)), **inputs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return UNREADABLE
    names = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
    if names:
        return f"other than before: {', '.join(names)}; evaluated again"
    return "finished" if complete else "an earlier run did not finish: going on"


def _run(spec: StepSpec) -> int:
    """Run a step in a process of its own; its exit status."""
    command = [sys.executable, "-m", "pipeline.launch", str(spec.output / "spec.yaml"), canonical(spec)]
    return ranks.supervise(command, ranks.to_child)
