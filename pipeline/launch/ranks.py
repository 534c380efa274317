"""Start the ranks of a step: on this machine, inside a container, or by srun on the nodes of a Slurm job.

Each rank runs ``python -m pipeline.launch SPEC.yaml --rank`` with the variables that the module
``megatron_ext.distributed.rendezvous`` asks for. SIGTERM is passed on to the ranks once; this process waits until they
have written their state.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from megatron_ext.distributed.rendezvous import STORE
from pipeline.launch import local_ranks
from pipeline.launch.signals import STOPPED, exit_status, passed_on
from pipeline.steps.programs import ROOT

NOT_FOUND = 127
TASK = ROOT / "pipeline" / "launch" / "task.sh"
# What a rank says at its end, here and in the program that it runs in, `pipeline.launch`.
FAILED = re.compile(r"^rank (?P<rank>\d+) of \d+ on \S+ failed at (?P<time>\S+): .*$", re.MULTILINE)
ORDERLY = "the first rank stopped as asked"
# What srun, or ``local_ranks``, says of ranks that ended by themselves otherwise than by an exit status, and when srun
# begins to end the rest.
KILLED = re.compile(
    r"^(srun: error: \S+ tasks? [\d,-]+|rank \d+ of \d+): (?!Exited|Terminated|exit status).*$", re.MULTILINE
)
ENDING = "_step_signal: Terminating"
SHOWN_LINES = 40
# Goes before PATH where Apptainer mounts images with a program of its PATH: see the file in it.
SHIELD = ROOT / "pipeline" / "launch" / "shield"
SHIELDED = ("/usr/local/bin", "/usr/bin", "/bin")

Forward = Callable[[subprocess.Popen[bytes], int], None]


def local(path: Path, ranks: int, logs: Path | None = None) -> int:
    """Run the step of ``path`` on ``ranks`` processes of this machine; the exit status."""
    return local_ranks.run([sys.executable, "-m", *_launch(path, logs), "--rank"], ranks)


def apptainer(path: Path, image: str, logs: Path | None = None, text: str | None = None) -> int:
    """Run the step of ``path`` in a container on this machine, all of its ranks in the same one; the exit status.
    ``text``: its specification as JSON, to be written to ``path`` there."""
    step = _launch(path, logs, () if text is None else ("-",))
    return supervise(contained(image, ["python", "-m", *step]), to_child, text)


def srun(path: Path, ranks: int, nodes: int, cpus: int, image: str | None, logs: Path | None = None) -> int:
    """Run the step of ``path`` on ``ranks`` processes, spread evenly over ``nodes`` nodes of the Slurm job that this
    process runs in, each with ``cpus`` CPUs and, with ``image``, in a container of its own; the exit status."""
    command = ["python", "-m", *_launch(path, logs), "--rank"]
    command = contained(image, command) if image else [sys.executable, *command[1:]]
    geometry = {"nodes": nodes, "ntasks": ranks, "ntasks-per-node": ranks // nodes, "cpus-per-task": cpus}
    call = ["srun", *(f"--{name}={value}" for name, value in geometry.items()), "--kill-on-bad-exit=1"]
    # A step that this one is started from, such as an interactive shell, holds the job's resources; without --overlap
    # this one would wait for its end.
    call += ["--overlap", "--export=ALL", "--input=none"]
    # Ranks of one node, each in a container of its own, share GPUs' memory and must see each other as processes.
    os.environ.pop("APPTAINER_CONTAINALL", None)
    os.environ["MASTER_HOST"] = socket.gethostname()
    os.environ.pop(STORE, None)
    with local_ranks.meeting_place() if nodes == 1 else nullcontext() as store:
        if store is not None:
            os.environ[STORE] = store
            if os.environ.get("SLURM_JOB_NUM_NODES") != "1":
                call.append(f"--nodelist={os.environ['SLURMD_NODENAME']}")  # the ranks must see this node's file
        return supervise([*call, "--", str(TASK), *command], _to_step)


def contained(image: str, command: Sequence[str]) -> list[str]:
    """``command`` inside a container of ``image``, in this working directory; ``containers.environment`` says how."""
    here = str(Path.cwd())
    return ["apptainer", "--quiet", "exec", "--home", here, "--pwd", here, image, *command]


def shielded(path: str) -> str:
    """``PATH`` with which containers keep their files when every process of a job gets SIGTERM."""
    found = shutil.which("squashfuse_ll", path=path)
    if found is None or str(Path(found).parent) not in SHIELDED:
        return path
    return os.pathsep.join([str(SHIELD), path])


def refusal(ranks: int, nodes: int | None) -> str | None:
    """Why ``ranks`` ranks cannot be started on ``nodes`` nodes from here, or ``None``."""
    if nodes is None:
        return None
    if nodes < 1 or ranks % nodes:
        return f"--nodes {nodes}: the layout's {ranks} ranks do not spread evenly over {nodes} nodes"
    if "SLURM_JOB_ID" not in os.environ:
        return f"--nodes {nodes}: needs a Slurm job, and SLURM_JOB_ID is not set" if nodes > 1 else None
    if "SLURMD_NODENAME" not in os.environ:
        return (
            f"--nodes {nodes}: in Slurm job {os.environ['SLURM_JOB_ID']}, but not on a node of it: SLURMD_NODENAME is "
            "not set. Start it by sbatch, or in a shell of `srun --pty bash`"
        )
    return None


def supervise(command: Sequence[str], forward: Forward, text: str | None = None) -> int:
    """Run ``command`` to its end, with ``text`` as its standard input; ``forward`` passes SIGTERM, the first one only,
    and SIGINT on. The exit status, which after a SIGTERM is 143 for every way of not succeeding."""
    child: subprocess.Popen[bytes] | None = None

    def send(number: int) -> None:
        if child is not None:
            forward(child, number)

    with passed_on(send) as (received, begin):
        try:
            environment = {**os.environ, "PATH": shielded(os.environ.get("PATH", os.defpath))}
            child = subprocess.Popen(command, env=environment, stdin=None if text is None else subprocess.PIPE)
        except FileNotFoundError:
            print(f"{command[0]}: no such program on PATH", file=sys.stderr)
            return NOT_FOUND
        begin()
        if text is not None and child.stdin is not None:
            with suppress(BrokenPipeError), child.stdin as told:
                told.write(text.encode())
        status = child.wait()
    return STOPPED if status and signal.SIGTERM in received else exit_status(status)


def stopped(log: Path) -> bool:
    """Whether the ranks that wrote ``log`` ended because they were asked to, with a state to go on from."""
    text = _read(log)
    return ORDERLY in text and not FAILED.search(text) and not killed(text)


def explanation(log: Path, folder: Path) -> str:
    """Last words on ranks that failed, from what they wrote into ``log`` and, each for itself, into ``folder``."""
    text = _read(log)
    lines = killed(text)
    failures = sorted(FAILED.finditer(text), key=lambda found: found["time"])
    if failures:
        first = failures[0]
        lines.append(f"first error of a rank, {first[0]}")
        if others := sorted({int(found["rank"]) for found in failures[1:]}):
            lines.append(f"after it: {', '.join(f'rank {rank}' for rank in others)}")
        lines += _last_lines(folder / f"{first['rank']}.log")
    else:
        lines.append("no rank names an error of its own: it was killed, or failed before it began")
        lines += [line for file in sorted(folder.glob("*.log")) for line in _last_lines(file)]
    return "\n".join(lines)


def killed(text: str) -> list[str]:
    """What a log says of ranks that ended by themselves otherwise than by an exit status."""
    return [found[0] for found in KILLED.finditer(text.partition(ENDING)[0])]


def _last_lines(file: Path) -> list[str]:
    """The end of what a rank wrote for itself; nothing of the first rank, which writes into the log of all."""
    lines = _read(file).splitlines()[-SHOWN_LINES:] if file.exists() else []
    return [f"last lines of {file}:", *(f"    {line}" for line in lines)] if lines else []


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _launch(path: Path, logs: Path | None, told: Sequence[str] = ()) -> list[str]:
    return ["pipeline.launch", str(path), *told, *(["--rank-logs", str(logs)] if logs else [])]


def to_child(child: subprocess.Popen[bytes], number: int) -> None:
    """Pass a signal on to the process itself."""
    child.send_signal(number)


def _to_step(child: subprocess.Popen[bytes], number: int) -> None:
    """To the job's steps by way of Slurm: srun would kill its tasks when it gets SIGTERM itself."""
    if number != signal.SIGTERM:
        child.send_signal(number)
    elif shutil.which("scancel"):
        # Without its complaint when all of the job is being ended anyway.
        job = os.environ["SLURM_JOB_ID"]
        subprocess.Popen(["scancel", "--signal=TERM", job], stderr=subprocess.DEVNULL)
    else:
        print("scancel: no such program on PATH; the ranks are not told to stop", file=sys.stderr)
