"""``unlearn init``: an experiment file for a model and files of what is to be forgotten and kept."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_ext.atomic_files import write_text
from pipeline.commands.plan import named, size_of
from pipeline.config.auto_layout import NODE
from pipeline.config.load import load
from pipeline.config.located_yaml import ConfigError, short
from pipeline.config.sizing import number_of
from pipeline.data import user_files
from pipeline.data.errors import DataError
from pipeline.data.settings import TABLES
from pipeline.workflow import costs
from pipeline.workflow.plan import Plan

# What people call the fields of their rows.
QUESTIONS = ("question", "prompt", "instruction", "input", "query")
ANSWERS = ("answer", "completion", "response", "output", "target")
CHATS = ("messages", "conversations", "chat")
TEXTS = ("text", "content", "document", "body")

OWN = "own-answers"
OWN_MEANS = " # only what the model says to general prompts is kept and measured, nothing else that it knows"

EPOCHS, STEPS = 5, 20  # passes over what is forgotten; more where few rows make fewer steps than these
# What a key of the file was given by.
OPTIONS = {"model.hub": "--model", "model.path": "--model", "methods[0]": "--method", "name": "--name"}
LARGE = 5e8  # parameters from which on steps are in bf16

USAGE = """
unlearn init --model Qwen/Qwen2.5-1.5B-Instruct --forget forget.jsonl --retain retain.jsonl
unlearn init --model my-model --forget letters --retain others.csv --method npo --method blur-npo --out first.yaml
unlearn init --model my-model --forget forget.jsonl --own-answers
"""

EXPERIMENT = """\
# Made by `unlearn init`. `unlearn validate` checks it and shows what will run, `unlearn run` runs it.
name: {name} # of the folder of results
title: {title}
model: {model} # its config and tokenizer say sizes and prompt template

benchmark:
  name: {data_name}
  title: {data}
  family: custom
  source:
    kind: files
    sets: # a name for each file or folder; relative paths start at this file
{sets}
    # What each set is for. `holdout`, `reworded`, `cloze` and `others` tell more of what was forgotten (docs/data.md).
    splits:
      request-1: {split}
split: request-1
# utility: [everyday.yaml] # asks each model tasks of lm-evaluation-harness too: what else it still can (docs/data.md)

methods: [{methods}] # docs/methods.md has them all
unlearning: # for every method
  epochs: {epochs} # passes over what is forgotten: more of them forget more, and change more else
  global_batch: {batch} # rows of a step, of what is forgotten and of what is kept
  optimizer: {{learning_rate: 1.0e-5}}

seeds: [0]
data: {{max_length: {length}, bad_rows: error}} # tokens of a row; `drop` leaves out rows that are longer
runtime: {{device: auto, precision: {precision}}}
layout: {layout} # {why}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add = parser.add_argument
    add("--model", required=True, metavar="NAME|FOLDER", help="a Hugging Face folder, or a model's name on the hub")
    files = "JSONL, JSON, CSV or Parquet of questions and answers, chats or texts; a text; or a folder of texts"
    add("--forget", required=True, action="append", type=Path, metavar="FILE", help=f"what to forget: {files}")
    add("--retain", action="append", type=Path, metavar="FILE", help="what is to be kept, in these forms")
    add(
        "--own-answers",
        nargs="?",
        const="",
        metavar="PROMPTS",
        help="where nothing is at hand that is to be kept: the model's own answers to general prompts, the project's "
        "or those of a file (docs/data.md says what this means)",
    )
    add("--method", action="append", metavar="NAME", help="a method; may be given several times; default: blur-npo")
    add("--gpus", type=int, metavar="N", help="write a layout that fits so many GPUs")
    add("--gpu-memory", metavar="SIZE", help="of each of them, such as 24GiB; default: 80 GiB")
    add("--name", help="of the experiment; default: by the first file to forget")
    add("--out", type=Path, metavar="FILE", help="the file that is written; default: NAME.yaml")


def main(given: argparse.Namespace) -> int:
    """Write the file, and check it; returns the exit status: 0, or 2 where it would not do."""
    name = given.name or "forget-" + (re.sub(r"[^a-z0-9]+", "-", given.forget[0].stem.lower()).strip("-") or "data")
    out = given.out or Path(f"{name}.yaml")
    if os.path.exists(out):  # which a folder that may not be looked into does not fail
        print(f"{out}: is there already; --out names another file", file=sys.stderr)
        return 2
    good = False
    try:
        if not given.retain and given.own_answers is None:
            message = "what is to be kept is missing. Where nothing is at hand, --own-answers keeps what the model says"
            raise ConfigError([f"--retain: {message} to general prompts"])
        both = [file for file in given.retain or () if file.resolve() in {one.resolve() for one in given.forget}]
        if both:
            raise ConfigError([f"--retain: {str(both[0])!r} is to be forgotten: --forget names it too"])
        if given.gpus is not None and given.gpus < 1:
            raise ConfigError([f"--gpus: {given.gpus}; at least 1 is needed"])
        if given.gpu_memory and given.gpus is None:
            raise ConfigError(["--gpu-memory: says how large each of --gpus is, which is missing"])
        size = size_of(given.gpu_memory) if given.gpu_memory else None
        _write(out, text_of(given, name, out))
        config = load(out)
        precision = "bf16" if config.shape.parameters >= LARGE else "fp32"
        _write(out, text_of(given, name, out, rows=config.forget_rows, precision=precision))
        layout = fitting(out, given.gpus, size) if given.gpus else None
        _write(out, text_of(given, name, out, rows=config.forget_rows, precision=precision, layout=layout))
        config = load(out)
        good = True
    except (ConfigError, DataError) as error:
        if not Path(given.model).expanduser().exists():
            print(
                f"--model: there is no folder {given.model!r}, so it was taken for a name on the hub", file=sys.stderr
            )
        # The lines of a file that is not there help nobody.
        text = re.sub(rf"^{re.escape(short(out))}:[0-9]+: ", "", str(error), flags=re.MULTILINE)
        text = re.sub(r"^benchmark\.name: .*\n?", "", text, flags=re.MULTILINE)  # it is made of the experiment's
        for key, option in OPTIONS.items():
            text = re.sub(rf"^{re.escape(key)}: ", f"{option}: ", text, flags=re.MULTILINE)
        print(f"{text}\nnothing was written", file=sys.stderr)
        return 2
    finally:
        if not good:
            with suppress(OSError):
                out.unlink(missing_ok=True)
    print(f"{out}: {number_of(config.forget_rows, 'row')} to forget. Next: unlearn validate {out}, unlearn run {out}")
    return 0


def _write(out: Path, text: str) -> None:
    try:
        write_text(out, text)
    except OSError as error:
        files = [f"{path} is a file" for path in out.parents if os.path.isfile(path)]
        reason = files[0] if files else error.strerror
        raise ConfigError([f"--out: {out}: cannot be written: {reason}"]) from None


def fitting(experiment: Path, gpus: int, size: float | None) -> str:
    """The layout over so many GPUs at which every step fits, as YAML.

    Args:
        experiment: The experiment's file, with any layout.
        gpus: How many there are.
        size: Bytes of each; ``None``: those of the table's first type.

    Raises:
        ConfigError: No layout fits.
    """
    plan = Plan(load(experiment), experiment.parent / "results")
    size = next(iter(costs.gpus().values())).memory_gib * 2**30 if size is None else size
    best = costs.recommended(plan, gpus, size, NODE)
    if best is None:
        more = "more or larger GPUs are needed; unlearn plan shows what takes the memory"
        raise ConfigError(
            [f"--gpus: at no layout of {number_of(gpus, 'GPU')} of {size / 2**30:g} GiB every step fits: {more}"]
        )
    return named(best[0])


def text_of(
    given: argparse.Namespace,
    name: str,
    out: Path,
    rows: int = 1,
    precision: str = "fp32",
    layout: str | None = None,
) -> str:
    """The experiment.

    Args:
        given: The command line.
        name: The experiment's name.
        out: The file that it is written to.
        rows: How many are to be forgotten.
        precision: Of its steps.
        layout: Of its ranks, as YAML.

    Raises:
        DataError: A file cannot be read, or its rows have no field that is known.
    """
    folder = Path(given.model).expanduser()
    entries, split = dict[str, str](), dict[str, list[str]]()
    batch = max(1, min(8, rows))
    for use in ("forget", "retain"):
        for number, path in enumerate(getattr(given, use) or (), 1):
            label = use if number == 1 else f"{use}-{number}"
            fields = described(path.expanduser())
            entries[label] = json.dumps({"path": _from(out, path.expanduser()), **fields}, ensure_ascii=False)
            split.setdefault(use, []).append(label)
    if given.own_answers is not None:
        own = {"prompts": _from(out, Path(given.own_answers).expanduser())} if given.own_answers else {}
        entries[OWN] = json.dumps({"own_answers": own}, ensure_ascii=False) + OWN_MEANS
        split.setdefault("retain", []).append(OWN)
    kept = given.retain[0].name if given.retain else "the model's own answers"
    return EXPERIMENT.format(
        name=_quoted(name),
        data_name=_quoted(f"{name}-data"),
        title=json.dumps(f"Forget {given.forget[0].name}", ensure_ascii=False),
        model=json.dumps({"path": _from(out, folder)} if folder.exists() else {"hub": given.model}),
        data=json.dumps(f"{given.forget[0].name} and {kept}", ensure_ascii=False),
        sets="\n".join(f"      {label}: {entry}" for label, entry in entries.items()),
        split=json.dumps(split),
        methods=", ".join(given.method or ["blur-npo"]),
        batch=batch,
        epochs=max(EPOCHS, math.ceil(STEPS / math.ceil(rows / batch))),
        layout=layout or "1",
        why=f"fits {number_of(given.gpus, 'GPU')}" if layout else "or, over several GPUs, for example {tensor: 2}",
        length=256,
        precision=precision,
    )


def _quoted(text: str) -> str:
    """A name as YAML, in quotes but where it is surely the same without them."""
    return text if re.fullmatch(r"[a-z]+(-[a-z0-9]+)+", text) else json.dumps(text)


def _from(out: Path, path: Path) -> str:
    """A path as the experiment's file names it: from its folder, where it lies below that."""
    folder = out.absolute().parent
    path = path.absolute()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def described(path: Path) -> dict[str, Any]:
    """The fields of a file as a set of a benchmark says them, by the names in its first row.

    Raises:
        DataError: It cannot be read, or none of the fields is known.
    """
    if path.suffix.lower() not in TABLES:
        return {}
    rows = user_files.read(path)
    if not rows:
        raise DataError(f"{path}: no rows")
    place, first = rows[0]
    if isinstance(first, str):
        return {"text_key": "text"}
    fields = list(first) if isinstance(first, dict) else []
    chat, text, question, answer = (
        next((name for name in known if name in fields), None) for known in (CHATS, TEXTS, QUESTIONS, ANSWERS)
    )
    if chat is not None:
        return {"messages_key": chat}
    if question is not None and answer is not None:
        return {"question_key": question, "answer_key": answer}
    if text is not None:
        return {"text_key": text}
    raise DataError(
        f"{place}: its fields are {', '.join(fields) or 'none'}; one of {', '.join(QUESTIONS)} with one of "
        f"{', '.join(ANSWERS)} is needed, or one of {', '.join((*CHATS, *TEXTS))}: rename them"
    )
