"""Stopping and going on: the state of a run, written every N steps and read back bit for bit.

One safetensors file a rank, in a folder that is renamed when all are written: no pickle, and no process sees another's
tensors. A state belongs to one run of the same code at one layout; for any other it is dropped, with a message. What
follows from a state has the same bits wherever the same step twice has: on a CPU with the same number of threads, and
on a GPU with ``runtime.deterministic``, without which attention and scatter kernels add in an order of their own.
(Checkpoints that others read are Hugging Face folders, see ``megatron_ext.checkpoint``.)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_ext.atomic_files import sync, write_json, write_text
from megatron_ext.checkpoint.identity import differences, digests
from megatron_ext.distributed.collectives import barrier, from_first_rank, gather_from_ranks
from megatron_ext.training import optimizer as optimizers
from megatron_ext.training.optimizer import inner_optimizers
from megatron_ext.training.step_log import StepLog
from megatron_ext.training.trainer import Trainer
from megatron_ext.updates import Vector


class Companion(Protocol):
    """What a run keeps in the folder of its states beside them. Every method but ``wrong`` is called on every rank."""

    def wrong(self, steps: int) -> str:
        """On world rank 0: why it cannot go back to what was there after ``steps`` steps; empty where it can."""

    def restore(self, steps: int) -> None:
        """Go back to what was there after ``steps`` steps, of which there is a state; 0: there is none."""

    def flush(self) -> None:
        """Have everything on disk: a state that needs it is about to get its name."""

    def saved(self) -> None:
        """The state has it; older states are gone."""


class Resume:
    """The folder ``output/resume``: the newest state and the step log so far. Every method is collective."""

    def __init__(
        self,
        output: Path,
        identity: dict[str, Any],
        trainer: Trainer,
        rule_state: dict[str, float] | None = None,
        rule_vectors: dict[str, Vector] | None = None,
        companions: Sequence[Companion] = (),
    ) -> None:
        """Describe the run; nothing is read yet.

        Args:
            output: The run's output folder.
            identity: Everything that makes this run the run it is, beside its code: specification, digests of its
                inputs. A state of another identity is dropped, with a message.
            trainer: Whose model and optimizer are saved.
            rule_state: The update rule's own numbers, which restoring changes in place.
            rule_vectors: The vectors that the rule keeps, this rank's pieces of them; as ``rule_state``.
            companions: Each keeps further files in ``folder_of(output)``.
        """
        self.folder, self.companions = folder_of(output), companions
        self.rule_state = {} if rule_state is None else rule_state
        self.rule_vectors = {} if rule_vectors is None else rule_vectors
        self.trainer, self.ranks = trainer, trainer.ranks
        self.identity = digests(identity)
        self.log = StepLog(self.folder / "steps.jsonl", active=self.ranks.world_rank == 0)

    def restore(self) -> int:
        """Load the newest state that can be read, if it is this run's. Returns the number of steps already taken."""
        state, steps = self._choose(), 0
        if state is not None:
            steps = int(state["steps"])
            self.rule_state.clear()
            self.rule_state.update(state["rule_state"])
            self._load(self.folder / state["folder"] / self._file())
        self.log.open(steps)
        for companion in self.companions:
            companion.restore(steps)
        return steps

    def _choose(self) -> dict[str, Any] | None:
        """The newest state that every rank can read: its folder's name, how many steps had been taken, the rule's own
        numbers. Where it is not this run's, or there is none, the folder is emptied for a clean start."""
        for name in from_first_rank(lambda: [state.name for state in reversed(self._states())], self.ranks):
            state: dict[str, Any] = from_first_rank(partial(self._described, self.folder / name), self.ranks)
            if "differ" in state:
                break
            wrong = state.get("wrong") or self._unreadable(self.folder / name / self._file())
            found = [each for each in gather_from_ranks(wrong, self.ranks) if each]
            if not found:
                if self.ranks.world_rank == 0:
                    print(f"going on after step {state['steps']}", flush=True)
                return state
            if self.ranks.world_rank == 0:
                print(f"a state cannot be read and is left out: {found[0]}", flush=True)
        if self.ranks.world_rank == 0:
            _discard(self.folder)
        barrier(self.ranks)
        return None

    def _described(self, folder: Path) -> dict[str, Any]:
        """A state's name, steps and numbers of the rule. Or ``wrong``, a text, where they cannot be read, or
        ``differ``, where they are another run's, which is said."""
        file = folder / "state.json"
        try:
            known = json.loads(file.read_bytes())
            identity, steps = known["identity"], int(known["steps"])
            state = {"folder": folder.name, "steps": steps, "rule_state": dict(known["rule_state"])}
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError) as error:
            return {"wrong": f"{file}: {type(error).__name__}: {error}"}
        if differ := differences(identity, self.identity):
            what = f"is of another configuration, other inputs or other code ({', '.join(differ)})"
            print(f"{self.folder} {what}: starting from the beginning", flush=True)
            return {"differ": differ}
        lines = self.log.count()
        if lines < steps:
            return {"wrong": f"{self.log.path}: {lines} lines, and {file} needs {steps}"}
        wrong = next(filter(None, (companion.wrong(steps) for companion in self.companions)), "")
        return {"wrong": wrong} if wrong else state

    @staticmethod
    def _unreadable(file: Path) -> str:
        """What is wrong with a rank's file; that it has all of its bytes is in its header."""
        try:
            with safe_open(file, framework="pt"):
                return ""
        except (FileNotFoundError, SafetensorError) as error:
            return f"{file}: {error}"

    def save(self, steps: int) -> None:
        """Write the state after ``steps`` steps, then delete older ones."""
        final = self.folder / f"step-{steps:08d}"
        unfinished = self.folder / f".{final.name}"
        if self.ranks.world_rank == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        barrier(self.ranks)
        if self._writes():
            tensors = {name: t.detach().contiguous().cpu() for name, t in self._tensors()}
            tensors |= {name: torch.tensor(group["step"]) for name, group in self._groups() if "step" in group}
            save_file(tensors, unfinished / self._file())
            sync(unfinished / self._file())
        for companion in self.companions:
            companion.flush()
        barrier(self.ranks)
        if self.ranks.world_rank == 0:
            self.log.flush()
            write_json(
                unfinished / "state.json", {"identity": self.identity, "steps": steps, "rule_state": self.rule_state}
            )
            sync(unfinished / "state.json")
            sync(unfinished)  # before it gets its name, and has it before older ones are gone
            if final.exists():
                shutil.rmtree(final)
            os.replace(unfinished, final)
            sync(self.folder)
            for older in self._states():
                if older != final:
                    shutil.rmtree(older)
        barrier(self.ranks)
        for companion in self.companions:
            companion.saved()

    def kept(self) -> str:
        """A sentence on the newest state there is."""
        state = self._newest()
        return "No state was saved before." if state is None else f"The state before it is kept: {state}"

    def finish(self, log: Path) -> None:
        """Give the step log its final name and delete the state: the run's output is complete."""
        self.log.close()
        barrier(self.ranks)
        if self.ranks.world_rank == 0:
            write_text(log, self.log.path.read_text())
            _discard(self.folder)

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _newest(self) -> Path | None:
        states = self._states()
        return states[-1] if states else None

    def _writes(self) -> bool:
        return self.ranks.data_rank == 0 or self.ranks.layout.distributed_optimizer

    def _file(self) -> str:
        data = self.ranks.data_rank if self.ranks.layout.distributed_optimizer else 0
        return f"tensor-{self.ranks.tensor_rank}-pipeline-{self.ranks.pipeline_rank}-data-{data}.safetensors"

    def _optimizers(self) -> Iterator[tuple[str, torch.optim.Optimizer, Tensor]]:
        for i, inner in inner_optimizers(self.trainer.optimizer):
            for g, group in enumerate(inner.param_groups):
                for p, parameter in enumerate(group["params"]):
                    yield f"optimizer.{i}.{g}.{p}", inner, parameter

    def _groups(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Parameter groups, by the name of their step count: Transformer Engine's and Apex's optimizers keep it there,
        where torch's have a tensor for each parameter."""
        for i, inner in inner_optimizers(self.trainer.optimizer):
            for g, group in enumerate(inner.param_groups):
                yield f"optimizer.{i}.{g}.step", group

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        model = dict(self.trainer.model.named_parameters())
        storages = {p.untyped_storage().data_ptr() for p in model.values()}
        if not self._weights_follow:
            yield from ((f"model.{name}", p) for name, p in model.items() if p.requires_grad)
        for name, vector in self.rule_vectors.items():
            yield from ((f"rule.{name}.{i}", piece) for i, piece in enumerate(vector))
        for name, inner, parameter in self._optimizers():
            if parameter.untyped_storage().data_ptr() not in storages:  # an fp32 main copy of a bf16 parameter
                yield f"{name}.main", parameter
            for key, value in inner.state[parameter].items():
                yield f"{name}.state.{key}", value

    @torch.no_grad()
    def _load(self, path: Path) -> None:
        # The state of an offloaded optimizer does not fit the GPU.
        offloaded = self.trainer.memory_settings.optimizer == "offload"
        with safe_open(path, framework="pt", device="cpu" if offloaded else str(self.ranks.device)) as file:
            keys = set(file.keys())
            self._load_rule_vectors(file, keys)
            for name, inner, parameter in self._optimizers():
                prefix = f"{name}.state."
                stored = [key for key in keys if key.startswith(prefix)]
                inner.state[parameter] = {key.removeprefix(prefix): file.get_tensor(key) for key in stored}
            for name, group in self._groups():
                if name in keys:
                    group["step"] = int(file.get_tensor(name))
            for name, tensor in self._tensors():
                if ".state." not in name:
                    tensor.copy_(file.get_tensor(name))
        if self.ranks.dtype != torch.float32:
            trainer = self.trainer
            optimizers.restored(trainer.optimizer, trainer.accumulator.ddp, self.ranks, trainer.memory_settings)

    @property
    def _weights_follow(self) -> bool:
        """Whether the trained weights are rounded from fp32 ones that the optimizer keeps, and need not be saved."""
        return optimizers.weights_follow(self.ranks, self.trainer.memory_settings)

    def _load_rule_vectors(self, file: Any, keys: set[str]) -> None:
        pieces = range(len(self.trainer.accumulator.space.held))
        self.rule_vectors.clear()
        for name in {key.split(".")[1] for key in keys if key.startswith("rule.")}:
            self.rule_vectors[name] = [file.get_tensor(f"rule.{name}.{i}").to(self.ranks.device) for i in pieces]


def folder_of(output: Path) -> Path:
    """Where a run with this output folder keeps its states."""
    return output / "resume"


def _discard(folder: Path) -> None:
    """Remove a folder so that a kill leaves it whole or gone, never in part."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        os.replace(folder, gone)
        shutil.rmtree(gone)
