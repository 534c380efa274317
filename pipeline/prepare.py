"""Benchmark text to tokenised splits: ``python -m pipeline.prepare SPEC.yaml``.

The specification is a ``pipeline.specs.PrepareSpec``. Writes into its ``output``: ``train/<name>.npz``
(``megatron_ext.sequences.Sequences``), ``evaluation/<set>.jsonl``, ``tokenizer/``, ``summary.json``, and last
``manifest.json``: a folder that has one is complete.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ext.files import write_json, write_text
from megatron_ext.sequences import Sequences
from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline.data import cache, refusals, sources
from pipeline.data import tokenizer as tokenizers
from pipeline.data.rows import DataError, Row, Splits
from pipeline.data.splits import RETAIN_SPLITS
from pipeline.data.templates import TEMPLATES
from pipeline.data.tokenise import Encoder
from pipeline.specs import FolderTokenizer, PrepareSpec

SCHEMA = 1


def main(argv: Sequence[str] | None = None) -> None:
    clock = Clock()
    parser = argparse.ArgumentParser(prog="python -m pipeline.prepare", description="Tokenise a benchmark's splits.")
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
    splits = sources.load(spec.source, spec.forget_split)
    key = _key(spec, splits)
    # Next to the files it replaces, so that putting them in place is a rename.
    staging = Path(tempfile.mkdtemp(dir=output, prefix=".prepare."))
    try:
        content = None if spec.cache is None else cache.fetch(spec.cache, key, staging)
        cached = content is not None
        if content is None:
            content = _build(spec, splits, staging)
            if spec.cache is not None:
                cache.store(spec.cache, key, staging, content)
        clock.mark("work")
        (output / cache.MANIFEST).unlink(missing_ok=True)
        for name in cache.FOLDERS:
            if (output / name).exists():
                shutil.rmtree(output / name)
            os.rename(staging / name, output / name)
    finally:
        shutil.rmtree(staging)
    manifest = {"schema": SCHEMA, "key": key, "family": spec.family, "source": splits.source, **content}
    # A cached file may have been made from another copy of the same rows: where they come from is said afresh.
    for kind, origins in _origins(spec, splits).items():
        manifest[kind] = {name: {"origin": origins[name], **entry} for name, entry in content[kind].items()}
    overlap = splits.overlap(spec.forget_split, RETAIN_SPLITS[spec.forget_split])
    tables = [*content["train"].values(), *content["evaluation"].values()]
    clock.mark("write")
    summary = clock.write(
        output,
        _flags(content, overlap),
        cached=cached,
        key=key,
        rows=sum(table["rows"] for table in tables),
        dropped=sum(table["dropped"] for table in tables),
        tokens=sum(table["tokens"] for table in tables),
        longest=max(table["longest"] for table in tables),
        overlap=overlap,
        vocab_size=content["tokenizer"]["vocab_size"],
    )
    write_json(output / cache.MANIFEST, manifest)
    return summary


def _key(spec: PrepareSpec, splits: Splits) -> str:
    tokenizer = spec.tokenizer.model_dump(mode="json")
    if isinstance(spec.tokenizer, FolderTokenizer):
        tokenizer = {"kind": "folder", "sha256": tokenizers.digest(spec.tokenizer.path)}
    options = spec.model_dump(mode="json", include={"family", "forget_split", "template", "max_length", "bad_rows"})
    return cache.key(splits=splits.digests(), tokenizer=tokenizer, **options)


def _build(spec: PrepareSpec, splits: Splits, folder: Path) -> dict[str, Any]:
    """Write tokenizer/, train/ and evaluation/ under ``folder``; returns what the manifest says of them."""
    template = TEMPLATES[spec.template]
    training = _training(spec, splits)
    if isinstance(spec.tokenizer, FolderTokenizer):
        tokenizer = tokenizers.copy(spec.tokenizer.path, folder / "tokenizer")
    else:
        # "full", "general" and the extra splits hold every training text: "forget" and "retain" are parts of "full".
        texts = [
            (row.question, row.answer)
            for name in training
            if name not in ("forget", "retain")
            for row in training[name][0]
        ]
        plain = (_without(template.text(*text), template.special_tokens) for text in texts)
        tokenizer = tokenizers.train(plain, spec.tokenizer.vocab_size, template, folder / "tokenizer")
    encoder = Encoder(tokenizer, template, spec.max_length, spec.bad_rows)

    train, evaluation = {}, {}
    for name, (rows, origin) in training.items():
        sequences, dropped = encoder.training(rows, origin)
        if not len(sequences):
            raise DataError(f"{origin}: none of its {len(rows)} rows is left for training")
        train[name] = _save(folder / "train" / f"{name}.npz", sequences, dropped)
    # The tokenizer has not seen refusals: it is the same whatever they say.
    rows, origin = training["forget"]
    alternatives = encoder.alternatives(rows, refusals.drawn(rows), refusals.PER_ROW, origin)
    train[sources.ALTERNATIVES] = _save(folder / "train" / f"{sources.ALTERNATIVES}.npz", alternatives)
    for name, split in _evaluated(spec.forget_split).items():
        origin = splits.origins[split]
        records, dropped = encoder.evaluation(splits.rows[split], origin)
        if not records:
            raise DataError(f"{origin}: none of its {len(splits.rows[split])} rows is left for evaluation")
        file = folder / "evaluation" / f"{name}.jsonl"
        write_text(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        lengths = [len(record["prompt_ids"]) + len(ids) for record in records for ids in record["targets"].values()]
        evaluation[name] = _entry(file, len(records), dropped, sum(lengths), max(lengths))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "forget_split": spec.forget_split,
        "template": spec.template,
        "max_length": spec.max_length,
        "bad_rows": spec.bad_rows,
        "tokenizer": {
            "kind": spec.tokenizer.kind,
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
        },
        "train": train,
        "evaluation": evaluation,
        "files": {path.relative_to(folder).as_posix(): cache.sha256(path) for path in files},
    }


def _training(spec: PrepareSpec, splits: Splits) -> dict[str, tuple[list[Row], str]]:
    """Rows and origin of each training file. ``general``: what every model should know, whatever it forgets."""
    parts = {
        "retain": [RETAIN_SPLITS[spec.forget_split]],
        "forget": [spec.forget_split],
        "general": ["real_authors_perturbed", "world_facts_perturbed"],
    }
    files = {}
    for name in sources.training_sets(spec.source):
        named = parts.get(name, [name])
        rows = [row for split in named for row in splits.rows[split]]
        files[name] = (rows, " + ".join(splits.origins[split] for split in named))
    return files


def _evaluated(forget_split: str) -> dict[str, str]:
    """Evaluation set -> split, all of whose rows it holds."""
    return {
        "forget": f"{forget_split}_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
    }


def _origins(spec: PrepareSpec, splits: Splits) -> dict[str, dict[str, str]]:
    """Where the rows of each training and evaluation file came from."""
    train = {name: origin for name, (_, origin) in _training(spec, splits).items()}
    return {
        "train": {**train, sources.ALTERNATIVES: f"{train['forget']}, answered by refusals"},
        "evaluation": {name: splits.origins[split] for name, split in _evaluated(spec.forget_split).items()},
    }


def _flags(content: dict[str, Any], overlap: int) -> list[str]:
    flags = []
    if overlap:
        flags.append(f"{overlap} questions of the forget set are in the retain set too")
    for kind in ("train", "evaluation"):
        for name, table in content[kind].items():
            if table["dropped"]:
                flags.append(f"{kind}/{name}: {table['dropped']} of {table['dropped'] + table['rows']} rows dropped")
    return flags


def _save(file: Path, sequences: Sequences, dropped: int = 0) -> dict[str, Any]:
    """Write ``sequences``; returns what the manifest says of them."""
    sequences.save(file)
    lengths = sequences.lengths
    return _entry(file, len(sequences), dropped, int(lengths.sum()), int(lengths.max()))


def _entry(file: Path, rows: int, dropped: int, tokens: int, longest: int) -> dict[str, Any]:
    """What the manifest says of one file; ``tokens`` counts prompts and targets, each as often as it is read."""
    return {
        "rows": rows,
        "dropped": dropped,
        "tokens": tokens,
        "longest": longest,
        "sha256": cache.sha256(file),
    }


def _without(text: str, tokens: tuple[str, ...]) -> str:
    """``text`` with special tokens replaced by line ends: a tokenizer must not learn merges of their letters."""
    for token in tokens:
        text = text.replace(token, "\n")
    return text


if __name__ == "__main__":
    main()
