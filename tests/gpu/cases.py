"""What the tests on a GPU compare with: everything here is computed before, on the CPU and in fp32.

    python -m tests.gpu.cases FOLDER [--tiny]

megatron-core is made to use the CPU for a whole process, so that a process on a GPU finds these results in files.
``--tiny`` takes few models and methods, for the dry run without a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ext.atomic_files import write_text
from tests.megatron_ext.losses.test_methods import CASES
from tests.support import inference_cases, tiny
from tests.support.method_world import ROWS, World

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6
FEW_MODELS = ["llama3-tied"]
FEW_METHODS = ["blur-npo", "graddiff-kl"]
# Slow, and AdamW damped, so that rounding stays rounding. A rule that chooses its own rates takes no other than SGD.
ADAMW, SGD = {"learning_rate": 1e-4, "epsilon": 1e-3}, {"name": "sgd", "learning_rate": 1e-4}
UNLIKE = ("step", "tokens", "seconds", "peak_memory_bytes", "peak_reserved_bytes", "note")


def method_spec(references: Path, name: str, output: Path, **runtime: Any) -> Any:
    """Six steps of a method over whole sets."""
    from megatron_ext.losses import LOSSES
    from megatron_ext.methods import needed_files
    from megatron_ext.specs import UnlearnSpec
    from megatron_ext.updates import RULES

    case, world = CASES[name], World.there(references / "world")
    needed = needed_files(LOSSES[case.forget["name"]](**case.forget), RULES[case.rule["name"]](**case.rule))
    return UnlearnSpec.model_validate(
        {
            "checkpoint": str(world.folder / case.model),
            "topics": [world.topic(topic, case.model, needed) for topic in case.topics],
            "forget_loss": case.forget,
            "retain_loss": case.retain,
            "rule": case.rule,
            "trainable_layers": case.trainable_layers,
            "epochs": float(STEPS),
            "max_steps": STEPS,
            "batching": {"global_batch": ROWS, "micro_batch": 3},
            "optimizer": SGD if case.rule.get("automatic_rate") else ADAMW,
            "diagnostics": case.rule.get("dual_update") != "micro-batch",
            "runtime": {"timeout_seconds": 60.0, **runtime},
            "output": str(output / name),
        }
    )


def precisions(name: str) -> list[str]:
    """Those that a method works in: second derivatives, and a rate that is found by trying, need fp32."""
    rule = CASES[name].rule
    return ["fp32"] if rule["name"] == "ofmu" or rule.get("automatic_rate") else ["fp32", "bf16"]


def unlearn(spec: Any, ranks: Any) -> list[dict[str, float]]:
    """Run a specification; the numbers of its step log that are to be equal wherever it runs."""
    from megatron_ext.steps import unlearn as program
    from megatron_ext.summary import Clock

    program.unlearn(spec, ranks, Clock())
    return numbers(spec.output / "steps.jsonl")


def numbers(log: Path) -> list[dict[str, float]]:
    """Of each line the entries that are numbers, the rule's own too, but for time and memory."""
    rows = []
    for line in log.read_text().splitlines():
        row = json.loads(line)
        row |= {f"state.{key}": value for key, value in (row.pop("rule_state") or {}).items()}
        rows.append({key: value for key, value in row.items() if key not in UNLIKE and isinstance(value, float)})
    return rows


def sources() -> list[Path]:
    """The code that the files here are made by: the cases, their models and data, and the project's own."""
    cases = [Path(__file__), ROOT / "tests" / "megatron_ext" / "losses" / "test_methods.py"]
    folders = (ROOT / "megatron_ext", ROOT / "tests" / "support")
    return sorted([*cases, *(file for folder in folders for file in folder.rglob("*.py"))])


def key() -> str:
    """Of what these files are made of: results of other cases, or of other code, are not compared with."""
    digest = hashlib.sha256()
    for file in sources():
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def write(folder: Path, models: Sequence[str], methods: Sequence[str]) -> None:
    """Models, data, and what the CPU makes of them, in bf16 too: to know what bf16 itself does to a run."""
    import torch

    from megatron_ext.config import Runtime
    from megatron_ext.distributed import process_groups

    (folder / "references.json").unlink(missing_ok=True)  # what is made anew may be cut short
    for name in ("models", "inference", "world"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    tiny.write(folder / "models", list(models))
    for name in models:
        with torch.no_grad():
            half = tiny.make(name).to(torch.bfloat16)(tiny.token_ids()).logits.float()
        torch.save(half, folder / "models" / f"{name}-bf16.pt")
    expected = inference_cases.write(folder / "inference", [name for name in inference_cases.MODELS if name in models])
    World(folder / "world")
    logs: dict[str, Any] = {"fp32": {}, "bf16": {}}
    with process_groups.start(Runtime(device="cpu")) as ranks:
        here = {"fp32": ranks, "bf16": dataclasses.replace(ranks, dtype=torch.bfloat16)}
        for name in methods:
            for precision in precisions(name):
                spec = method_spec(folder, name, folder / "runs" / precision, device="cpu", precision=precision)
                logs[precision][name] = unlearn(spec, here[precision])
    made = {"key": key(), "models": list(models), "logs": logs, "inference": expected}
    write_text(folder / "references.json", json.dumps(made))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.cases", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="few models and methods")
    given = parser.parse_args(argv)
    few = given.tiny
    write(given.folder, FEW_MODELS if few else tiny.MODELS, FEW_METHODS if few else list(CASES))


if __name__ == "__main__":
    main()
