"""Benchmark text to tokenised splits: ``python -m pipeline.steps.prepare SPEC.yaml``.

The specification is a ``pipeline.specs.PrepareSpec``. Writes into its ``output``: ``train/<name>.npz``
(``megatron_ext.data.sequences.Sequences``), ``evaluation/<set>.jsonl``, ``tokenizer/``, ``summary.json``, and last
``manifest.json``: a folder that has one is complete.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ext.atomic_files import new_folder, write_json
from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline.benchmarks import data_family
from pipeline.data import cache, user_files
from pipeline.data import tokenizer as tokenizers
from pipeline.data.errors import DataError, printable
from pipeline.data.prepared import Content, HasRequests, PreparedWriter
from pipeline.data.settings import FolderTokenizer
from pipeline.data.templates import Template
from pipeline.data.tokenise import Encoder
from pipeline.specs import PrepareSpec

SCHEMA = 2


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program with the arguments ``argv``, by default those of the command line."""
    clock = Clock()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.steps.prepare", description="Tokenise a benchmark's splits."
    )
    parser.add_argument("spec", type=Path, help="YAML file with a prepare specification")
    try:
        summary = prepare(read(parser.parse_args(argv).spec, PrepareSpec), clock)
    except DataError as error:
        raise SystemExit(f"prepare: error: {error}") from error
    origin = "copied from the cache" if summary["cached"] else f"tokenised in {summary['work_seconds']:.1f} s"
    print(f"prepare: {summary['rows']} rows, {summary['tokens']} tokens, {origin}", file=sys.stderr)
    for flag in summary["flags"]:
        print(f"prepare: warning: {flag}", file=sys.stderr)


def prepare(spec: PrepareSpec, clock: Clock | None = None) -> dict[str, Any]:
    """Write the splits of ``spec`` and return the summary; raises ``DataError`` naming the file and row at fault."""
    clock = clock or Clock()
    output = Path(spec.output)
    output.mkdir(parents=True, exist_ok=True)
    clock.mark("startup")
    loaded = _load(spec)
    key = _key(spec, loaded)
    # Next to the files it replaces, so that putting them in place is a rename.
    staging = new_folder(output / "prepare")
    try:
        content = None if spec.cache is None else cache.fetch(spec.cache, key, staging)
        cached = content is not None
        if content is None:
            content = _build(spec, loaded, staging)
            if spec.cache is not None:
                _keep(spec.cache, key, staging, content)
        clock.mark("work")
        (output / cache.MANIFEST).unlink(missing_ok=True)
        for name in cache.FOLDERS:
            if (output / name).exists():
                shutil.rmtree(output / name)
            os.rename(staging / name, output / name)
    finally:
        shutil.rmtree(staging)
    manifest = {"schema": SCHEMA, "key": key, "family": spec.family, "source": loaded.source, **content}
    # A cached file may have been made from another copy of the same rows, so origins are not taken from the cache.
    for kind, origins in loaded.origins.items():
        manifest[kind] = {name: {"origin": origins[name], **entry} for name, entry in content[kind].items()}
    tables = [*content["train"].values(), *content["evaluation"].values()]
    clock.mark("write")
    summary = clock.write(
        output,
        [*loaded.flags(), *_flags(content)],
        cached=cached,
        key=key,
        rows=sum(table["rows"] for table in tables),
        dropped=sum(table["dropped"] for table in tables),
        tokens=sum(table["tokens"] for table in tables),
        longest=max((table["longest"] for table in tables), default=0),
        vocab_size=content["tokenizer"]["vocab_size"],
    )
    write_json(output / cache.MANIFEST, manifest)
    return summary


def _keep(folder: Path, key: str, staging: Path, content: dict[str, Any]) -> None:
    """Store what was made in the cache, without which it is made again elsewhere and no more."""
    try:
        cache.store(folder, key, staging, content)
    except OSError as error:
        print(printable(f"prepare: not kept for other experiments: {folder / key}: {error}"), file=sys.stderr)


def is_current(spec: PrepareSpec) -> bool:
    """Whether ``spec.output`` holds, unchanged, what ``prepare`` would write there; raises ``DataError`` as it does."""
    try:
        manifest = json.loads((spec.output / cache.MANIFEST).read_text(encoding="utf-8"))
        changed = [name for name, sha in manifest["files"].items() if cache.sha256(spec.output / name) != sha]
    except (OSError, ValueError, KeyError):
        return False
    if changed:
        return False
    loaded = _load(spec)
    return manifest.get("key") == _key(spec, loaded)


def _load(spec: PrepareSpec) -> Content:
    family = data_family(spec.family)
    given = (spec.source, spec.forget_split, spec.sets, spec.training)
    if not spec.requests:
        return family.load(*given)
    if not isinstance(family, HasRequests):
        raise DataError(f"requests: the family {spec.family!r} has none")
    return family.load(*given, requests=spec.requests)


def _key(spec: PrepareSpec, loaded: Content) -> str:
    tokenizer = spec.tokenizer.model_dump(mode="json")
    if isinstance(spec.tokenizer, FolderTokenizer):
        tokenizer = {"kind": "folder", "sha256": tokenizers.digest(spec.tokenizer.path)}
    named = {"family", "forget_split", "sets", "training", "requests", "template", "max_length", "bad_rows"}
    return cache.key(content=loaded.digest(), tokenizer=tokenizer, **spec.model_dump(mode="json", include=named))


def _build(spec: PrepareSpec, loaded: Content, folder: Path) -> dict[str, Any]:
    """Write tokenizer/, train/ and evaluation/ under ``folder``; returns what the manifest says of them."""
    template = Template.of(spec.template)
    if isinstance(spec.tokenizer, FolderTokenizer):
        tokenizer = tokenizers.copy(spec.tokenizer.path, folder / "tokenizer")
    else:
        # Bad rows are found when they are encoded, where the message can name them.
        good = (text for text in loaded.texts(template) if user_files.fault(text) is None)
        plain = (_without(text, template.special_tokens) for text in good)
        tokenizer = tokenizers.train(plain, spec.tokenizer.vocab_size, template, folder / "tokenizer")
    for name in ("train", "evaluation"):
        (folder / name).mkdir()
    tables = PreparedWriter(folder, spec.sets, spec.training)
    loaded.encode(Encoder(tokenizer, template, spec.max_length, spec.bad_rows), tables)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "forget_split": spec.forget_split,
        "template": spec.template if isinstance(spec.template, str) else spec.template.model_dump(mode="json"),
        "max_length": spec.max_length,
        "bad_rows": spec.bad_rows,
        "tokenizer": {
            "kind": spec.tokenizer.kind,
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
        },
        **tables.entries,
        "files": {path.relative_to(folder).as_posix(): cache.sha256(path) for path in files},
    }


def _flags(content: dict[str, Any]) -> list[str]:
    return [
        f"{kind}/{name}: {table['dropped']} of {table['dropped'] + table['rows']} rows dropped"
        for kind in ("train", "evaluation")
        for name, table in content[kind].items()
        if table["dropped"]
    ]


def _without(text: str, tokens: tuple[str, ...]) -> str:
    """``text`` with special tokens replaced by line ends: a tokenizer must not learn merges of their letters."""
    for token in tokens:
        text = text.replace(token, "\n")
    return text


if __name__ == "__main__":
    main()
