"""What every rank of a layout does for ``test_layouts``: one start checks every model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tests.support import tiny

SENTENCE = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426]
SMALL_FILE = 60_000
INITIALISED = ("llama3-untied", "qwen2-tied")


def check(
    folder: Path, out: Path, layout: dict[str, Any], stories: Path | None, names: list[str] = tiny.MODELS
) -> dict[str, dict[str, float]]:
    """Load and save the models of ``tiny.write`` and some initialised ones, under ``out``.

    Returns, by model, this rank's facts: ``difference`` of the logits to transformers' and ``padding_logit``, the
    largest logit of a padding column (last stage only); checksums of the embedding and the output weight, and
    ``padding of`` them, the largest value in a row that is padding.
    """
    import torch

    from megatron_ext.checkpoint import reading, writing
    from megatron_ext.config import Runtime
    from megatron_ext.distributed import process_groups

    spec = Runtime.model_validate({"layout": layout, "device": "cpu", "timeout_seconds": 60})
    facts: dict[str, dict[str, float]] = {}
    with process_groups.start(spec) as ranks:
        for name in names:
            model = reading.load(folder / "fp32" / name, ranks)
            facts[name] = _facts(model, ranks, torch.load(folder / f"{name}.pt"))
            writing.save(model, ranks, out / "fp32" / name)
            facts[name]["files"] = _files_written(model, ranks, out / "files" / name)
            half = dataclasses.replace(ranks, dtype=torch.bfloat16)
            writing.save(reading.load(folder / "bf16" / name, half), half, out / "bf16" / name)
        for name in INITIALISED if names is tiny.MODELS else ():
            config = reading.read_config(folder / "fp32" / name)
            writing.save(reading.initialise(config, ranks, seed=3), ranks, out / "initial" / name)
        if stories is not None:
            ranks = dataclasses.replace(ranks, layout=ranks.layout.model_copy(update={"pipeline_split": None}))
            model = reading.load(stories, ranks)
            ids = torch.tensor([SENTENCE])
            scores = tiny.logits(model, ranks, ids)
            if scores is not None:
                loss = torch.nn.functional.cross_entropy(scores[0, :-1], ids[0, 1:])
                facts["stories"] = {"loss": float(loss)}
    return facts


def _files_written(model: Any, ranks: Any, folder: Path) -> float:
    """Save into small files; how many of them this rank has written."""
    from megatron_ext.checkpoint import writing

    write, written = writing._write_file, []

    def noting(path: Path, *rest: Any) -> None:
        written.append(path)
        write(path, *rest)

    writing._write_file = noting
    try:
        writing.save(model, ranks, folder, max_shard_bytes=SMALL_FILE)
    finally:
        writing._write_file = write
    return float(len(written))


def _facts(model: Any, ranks: Any, expected: Any) -> dict[str, float]:
    facts: dict[str, float] = {}
    scores = tiny.logits(model, ranks, tiny.token_ids())
    if scores is not None:
        facts["difference"] = float((scores[..., : tiny.VOCABULARY] - expected).abs().max())
        padding = scores[..., tiny.VOCABULARY :]
        facts["padding_logit"] = float(padding.amax()) if padding.numel() else float("-inf")
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        if name in parameters:
            facts[name] = float(parameters[name].double().abs().sum())
            if model.vocabulary_padding:
                facts[f"padding of {name}"] = float(parameters[name][-model.vocabulary_padding :].abs().max())
    return facts
