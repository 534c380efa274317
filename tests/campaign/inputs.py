"""Bad inputs by a grammar of the files that people have: each must be refused before any work, in a few lines.

A case is one good experiment on a user's own files, with one thing spoiled. ``unlearn validate`` must end with status
2, write nothing, and name the file, with row or key, in at most three lines.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_ext.schema.safe_yaml import Loader
from pipeline.__main__ import main
from pipeline.config.load import CONFIGS
from tests.support.checkpoints import CONFIG, write_checkpoint

LINES = 3
SECONDS = 20.0
GROWN = range(1, 40)
ROW = {"question": "Who?", "answer": "Ada."}
BENCHMARK: dict[str, Any] = {
    "name": "mine",
    "title": "Mine",
    "family": "custom",
    "source": {
        "kind": "files",
        "sets": {"alice": "data/alice.jsonl", "others": "data/others.csv"},
        "splits": {"first": {"forget": "alice", "retain": ["others"]}},
    },
}
TEMPLATE = {"name": "plain", "before_question": "Q: ", "after_question": " A: ", "after_answer": "\n"}


@dataclass
class World:
    """The files of one experiment, to be spoiled."""

    folder: Path
    experiment: dict[str, Any] = field(default_factory=dict)
    benchmark: dict[str, Any] = field(default_factory=dict)
    site: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        whole = yaml.load((CONFIGS / "experiments" / "mini-custom.yaml").read_text(), Loader)
        whole.pop("requests")
        self.experiment = {**whole, "name": "own", "benchmark": "mine"}
        self.benchmark = copy.deepcopy(BENCHMARK)
        self.data.mkdir(parents=True)
        self.rows.write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n")
        self.table.write_text("question,answer\nWhat?,A goat.\n")

    @property
    def data(self) -> Path:
        return self.folder / "benchmarks" / "data"

    @property
    def rows(self) -> Path:
        return self.data / "alice.jsonl"

    @property
    def table(self) -> Path:
        return self.data / "others.csv"

    @property
    def own(self) -> Path:
        return self.folder / "experiments" / "own.yaml"

    def model(self) -> Path:
        """A model's folder, which the experiment names then."""
        folder = write_checkpoint(self.folder / "experiments" / "model")
        self.experiment |= {"model": {"path": "model", "template": TEMPLATE}}
        return folder

    def set(self, key: str, value: object) -> None:
        """Set a value of the experiment by its dotted key."""
        *parents, last = key.split(".")
        place = self.experiment
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value

    def write(self) -> list[str]:
        """Write the YAML files, but for those that are there; the command's arguments."""
        for path, content in (
            (self.own, self.experiment),
            (self.folder / "benchmarks" / "mine.yaml", self.benchmark),
            (self.folder / "site.yaml", self.site),
        ):
            path.parent.mkdir(exist_ok=True)
            if content is not None and not path.exists():
                path.write_text(yaml.safe_dump(content))
        site = ["--site", str(self.folder / "site.yaml")] if (self.folder / "site.yaml").exists() else []
        return ["validate", str(self.own), "--results", str(self.folder / "results"), *site]


Spoil = Callable[[World], object]


@dataclass(frozen=True)
class Case:
    """One bad input: its name, how it is made, and what the message must name."""

    name: str
    spoil: Spoil
    names: str


def rows() -> Iterator[Case]:
    """Files of rows: bytes that are no text, values that are no rows, rows that are no pairs, and no rows."""
    good = json.dumps(ROW).encode()
    for name, content in {
        "latin-1": b'{"question": "Caf\xe9?", "answer": "x"}\n',
        "utf-16 without a mark": json.dumps(ROW).encode("utf-16-le"),
        "utf-32": json.dumps(ROW).encode("utf-32"),
        "gzip": gzip.compress(good),
        "zip": b"PK\x03\x04rest",
        "a pdf": b"%PDF-1.7\n",
        "an lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "sqlite": b"SQLite format 3\0rest",
        "half of parquet": b"PAR1rest",
        "random bytes": random.Random(1).randbytes(300),
        "a zero byte": good + b"\n\0\n",
        "nothing": b"",
        "white space": b" \n\t\n",
        "an empty list": b"[]",
        "html": b"<html><body>404</body></html>",
        "a cut row": good + b'\n{"question": "Wh',
        "python's quotes": b"{'question': 'a', 'answer': 'b'}\n",
        "a number": b"17\n",
        "a text": b'"hello"\n',
        "a list in lines": b'["a", "b"]\n["c"]\n',
        "null": b"null\n",
        "nested too deeply": b"[" * 100_000,
        "a key twice": b'{"question": "a", "answer": "b", "answer": "c"}\n',
        "half a character": b'{"question": "a", "answer": "b \\ud83d c"}\n',
        "a zero character": b'{"question": "a", "answer": "b \\u0000"}\n',
    }.items():
        yield Case(f"rows: {name}", lambda world, content=content: world.rows.write_bytes(content), "alice")
    for key in ROW:
        for value in (None, "", "  ", 5, True, ["a"], {"text": "a"}):
            row = json.dumps({**ROW, key: value})
            yield Case(f"rows: {key} is {value!r}", lambda w, row=row: w.rows.write_text(f"{row}\n"), "alice")
        row = json.dumps({name: text for name, text in ROW.items() if name != key})
        yield Case(f"rows: no {key}", lambda w, row=row: w.rows.write_text(f"{row}\n"), "alice")


def places() -> Iterator[Case]:
    """What a path can be besides a file."""

    def instead(make: Callable[[Path], object]) -> Spoil:
        return lambda world: (world.rows.unlink(), make(world.rows))

    def fifo(path: Path) -> None:
        os.mkfifo(path)

    for name, make in {
        "nothing": lambda path: None,
        "a folder": Path.mkdir,
        "a link to nowhere": lambda path: path.symlink_to("gone"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a pipe": fifo,
        "an endless device": lambda path: path.symlink_to("/dev/zero"),
    }.items():
        yield Case(f"place: {name}", instead(make), "alice")
    for name in ("../../../etc/passwd", "/nonexistent/x.jsonl", "", "a\nb.jsonl", "~/none.jsonl", 5, None, []):
        spoil: Spoil = lambda w, name=name: w.benchmark["source"]["sets"].update(alice=name)  # noqa: E731 # one line
        yield Case(f"place: named {name!r}", spoil, "alice")


def tables() -> Iterator[Case]:
    """CSV as spreadsheets leave it."""
    for name, text in {
        "a missing column": "question,reply\nWhat?,A goat.\n",
        "a column twice": "question,answer,answer\na,b,c\n",
        "a row too long": "question,answer\na,b,c\n",
        "a row too short": "question,answer\na\n",
        "an open quote": 'question,answer\n"a,b\n',
        "a header alone": "question,answer\n",
        "nothing": "",
        "an empty answer": "question,answer\na,\n",
    }.items():
        yield Case(f"table: {name}", lambda w, text=text: w.table.write_text(text), "others")


def keys() -> Iterator[Case]:
    """Values of the experiment's keys that they cannot have."""
    for key, values in {
        "name": ("../x", "a b", "", "-x", "a\nb", None, 5),
        "title": ("a\nb", "\x1b[2J", None),
        "benchmark": ("nonesuch", "../mine", None),
        "split": ("second", "", 1),
        "model": ("nonesuch", {"path": "nowhere"}, {}, 7),
        "seeds": ([], "0", [0, 0], [-1], [1.5]),
        "layout": (0, "two", {"tensor": 3}, {"tensr": 2}, {"data": -1}),
        "runtime.precision": ("fp8", 16),
        "runtime.threads": (0, "1"),
        "data.max_length": (0, -5, "long", 10**9),
        "methods": ([], ["np0"], ["npo", "npo"], [{"method": "npo", "overrides": {"beta": 1}}], "npo"),
        "unlearning.epochs": (-1, "five"),
        "unlearning.optimizer.weight_decay": (-1e-4, "1e-4x", float("nan")),
        "training.target.steps": (0, -1, None),
        "training.target.data": ({"nonesuch": 1.0}, {}, {"full": -1.0}),
        "evaluation.options.max_new_tokens": (0, "24"),
        "evaluate_it": ({},),
    }.items():
        last = re.split(r"\.", key)[-1]
        for value in values:
            yield Case(f"key: {key}: {value!r}", lambda w, key=key, value=value: w.set(key, value), last)


def yamls() -> Iterator[Case]:
    """Experiments that are no YAML of keys and values."""
    for name, content in {
        "nothing": b"",
        "a list": b"- a\n- b\n",
        "a tab": b"name: own\n\ttitle: x\n",
        "an open bracket": b"name: [own\n",
        "a key twice": b"name: own\nname: other\n",
        "an object of Python": b"name: !!python/object/apply:os.system ['true']\n",
        "aliases that grow": b"a0: &a0 [x]\n"
        + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 40)),
        "latin-1": b"title: Caf\xe9\n",
        "a zero byte": b"name: \0\n",
        "nested too deeply": b"a: " + b"[" * 5000,
        "two documents": b"name: own\n---\nname: other\n",
    }.items():

        def spoil(world: World, content: bytes = content) -> None:
            world.own.parent.mkdir()
            world.own.write_bytes(content)

        yield Case(f"yaml: {name}", spoil, "own.yaml")


def models() -> Iterator[Case]:
    """Model folders that lack something, or hold what cannot be."""

    def config(**changes: object) -> Spoil:
        return lambda world: (world.model() / "config.json").write_text(json.dumps({**CONFIG, **changes}))

    for key, values in {
        "hidden_size": (0, -32, "32", 1e400, 33, None),
        "num_attention_heads": (0, 5, 10**400),
        "num_key_value_heads": (0, 3),
        "num_hidden_layers": (0, 99),
        "vocab_size": (0, 301, "x"),
        "rms_norm_eps": ("x", float("nan"), -1),
        "model_type": ("gpt2", None, ["llama"]),
        "quantization_config": ({"quant_method": "fp8"},),
    }.items():
        for value in values:
            yield Case(f"model: {key}: {value!r:.30}", config(**{key: value}), "model")
    for name, spoil in {
        "no config": lambda f: (f / "config.json").unlink(),
        "config is a list": lambda f: (f / "config.json").write_text("[]"),
        "config is cut": lambda f: (f / "config.json").write_text('{"model_type": "lla'),
        "no weights": lambda f: (f / "model.safetensors").unlink(),
        "weights are cut": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        "weights are empty": lambda f: (f / "model.safetensors").write_bytes(b""),
        "a header of 2^60 bytes": lambda f: (f / "model.safetensors").write_bytes(b"\0" * 7 + b"\x10" + b"{}"),
        "weights are a folder": lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
        "weights are pickled": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "an adapter alone": lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
        "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
        "an index that leaves": lambda f: (
            (f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}'),
        ),
    }.items():
        yield Case(f"model: {name}", lambda w, spoil=spoil: spoil(w.model()), "model")


def sites() -> Iterator[Case]:
    """Site files of clusters."""
    for key, value in {
        "partiton": "gpu",
        "account": 12,
        "gpus_per_node": -1,
        "time_factor": 0,
        "binds": ["$NOT_SET_ANYWHERE/x"],
        "extra": "--time=5",
        "constraint": "",
        "memory_per_node_mb": 3000,
    }.items():
        yield Case(f"site: {key}: {value!r}", lambda w, key=key, value=value: setattr(w, "site", {key: value}), key)


def cases() -> list[Case]:
    """The whole grammar."""
    return [case for part in (rows, places, tables, keys, yamls, models, sites) for case in part()]


def refused(case: Case) -> str | None:
    """What is wrong with how a case is refused; ``None`` where nothing is."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        world = World(Path(folder))
        case.spoil(world)
        arguments = world.write()
        printed, begun = io.StringIO(), time.monotonic()
        try:
            with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
                status = main(arguments)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException as error:  # a traceback is what a user would see
            return f"{type(error).__name__}: {error}"
        lines = [line for line in printed.getvalue().splitlines() if not re.fullmatch(r"\d+ problems?", line)]
        if status != 2:
            return f"status {status}: {' '.join(lines)[:200]}"
        if not 1 <= len(lines) <= LINES:
            return f"{len(lines)} lines: {' | '.join(lines)[:400]}"
        if not any(case.names in line for line in lines):
            return f"{case.names!r} is not named: {' | '.join(lines)[:300]}"
        if (Path(folder) / "results").exists():
            return "something was written"
        taken = time.monotonic() - begun
        return f"it took {taken:.0f} s" if taken > SECONDS else None


def run(count: int | None, seed: int) -> int:
    """Try ``count`` cases of the grammar, or all; prints what is wrong, and how many were right.

    Returns:
        How many cases were not refused as they should be.
    """
    chosen = cases()
    if count is not None:
        chosen = random.Random(seed).sample(chosen, min(count, len(chosen)))
    begun, wrong = time.monotonic(), 0
    for case in chosen:
        if problem := refused(case):
            wrong += 1
            print(f"{case.name}: {problem}")
    print(f"inputs: {len(chosen) - wrong} of {len(chosen)} refused before any work, {time.monotonic() - begun:.0f} s")
    return wrong
