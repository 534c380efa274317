"""A clone of this checkout in a folder of an ordinary user, and what that user does in it."""

from __future__ import annotations

import ast
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
# Settings of this machine that reach the user: of certificates and proxies, and see ``pip_settings``.
PASSED = re.compile(r"SSL_\w+|\w+_CA_BUNDLE|\w+_proxy|\w+_PROXY|LANG|TZ")


class Failed(Exception):
    """A command of the user that failed or took too long, with what it printed."""


@dataclass(frozen=True)
class Outcome:
    status: int
    printed: str
    seconds: float

    @property
    def jobs(self) -> set[str]:
        """The messages of the jobs that were started."""
        return set(re.findall(r"^Job \d+: (.*)$", self.printed, re.MULTILINE))


class Running:
    """A command that was started and prints into ``log``."""

    def __init__(self, process: subprocess.Popen[str], log: Path, timeout: float) -> None:
        self.process, self.log, self.begin, self.timeout = process, log, time.monotonic(), timeout

    def poll(self) -> int | None:
        if time.monotonic() > self.begin + self.timeout:
            raise subprocess.TimeoutExpired(self.process.args, self.timeout)
        return self.process.poll()

    def wait(self) -> None:
        self.process.wait(self.timeout)

    def interrupt(self) -> None:
        """Ctrl-C, at which Snakemake cancels its jobs."""
        self.process.send_signal(signal.SIGINT)

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.process.wait(0), self.log.read_text(), time.monotonic() - self.begin)


@dataclass(frozen=True)
class Rank:
    """A process of a step that is running: its number, its node, the GPUs it was given."""

    pid: int
    number: int
    node: str
    gpus: str


@dataclass(frozen=True)
class User:
    name: str

    def command(self, *arguments: str | Path, cwd: Path, **options: Any) -> subprocess.Popen[str]:
        """Start a command as this user, in a process group of its own."""
        account = pwd.getpwnam(self.name)
        environment = {name: value for name, value in os.environ.items() if PASSED.fullmatch(name)}
        environment |= pip_settings()
        environment |= {"HOME": account.pw_dir, "USER": self.name, "LOGNAME": self.name}
        environment["PATH"] = "/usr/local/bin:/usr/bin:/bin"
        return subprocess.Popen(
            list(map(str, arguments)),
            cwd=cwd,
            env=environment,
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            start_new_session=True,
            # As from a terminal: what a shell starts in the background ignores Ctrl-C, and so does all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stdin=subprocess.DEVNULL,
            text=True,
            **options,
        )

    def run(self, *arguments: str | Path, cwd: Path, timeout: float = 60) -> Outcome:
        begin = time.monotonic()
        process = self.command(*arguments, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            printed, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            raise Failed(f"{' '.join(map(str, arguments))} took more than {timeout:g} s:\n{printed}") from None
        return Outcome(process.returncode, printed, time.monotonic() - begin)

    def must(self, *arguments: str | Path, cwd: Path, timeout: float = 60) -> Outcome:
        """As ``run``; an exit status other than 0 raises ``Failed``."""
        done = self.run(*arguments, cwd=cwd, timeout=timeout)
        if done.status:
            raise Failed(f"{' '.join(map(str, arguments))} exited with {done.status}:\n{done.printed}")
        return done


@dataclass(frozen=True)
class Clone:
    """``folder`` is the clone; ``site`` are the settings of its ``site.yaml``."""

    folder: Path
    user: User

    def site(self, **settings: Any) -> None:
        self.write(self.folder / "site.yaml", settings)

    def write(self, path: Path, values: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        for changed in (path.parent, path):
            shutil.chown(changed, self.user.name, self.user.name)

    def snakemake(self, *arguments: str, experiment: Path, timeout: float = 400, profile: str = "slurm") -> Outcome:
        """``snakemake --profile slurm ...``, as the user types it."""
        return self.user.run(*self._line(arguments, experiment, profile), cwd=self.folder, timeout=timeout)

    def _line(self, arguments: Sequence[str], experiment: Path, profile: str) -> list[str]:
        line = [str(self.folder / ".venv/bin/snakemake"), "--profile", profile, *arguments]
        return [*line, "--config", f"experiment={experiment}"]

    @contextmanager
    def running(self, *arguments: str, experiment: Path, timeout: float = 600) -> Iterator[Running]:
        """As ``snakemake``, but meanwhile the body runs. A body that fails ends it, with what was printed.

        One run of an experiment at a time: its name is the log's.
        """
        line = self._line(arguments, experiment, "slurm")
        log = self.folder.parent / f"running-{experiment.stem}.log"
        with log.open("w") as file:
            process = self.user.command(*line, cwd=self.folder, stdout=file, stderr=subprocess.STDOUT)
        run = Running(process, log, timeout)
        try:
            yield run
            run.wait()
        except Exception as error:
            raise Failed(f"{' '.join(line)}: {error}\n{log.read_text()}") from error
        finally:
            if process.poll() is None:
                run.interrupt()
                process.wait(60)


def copy(target: Path, user: User) -> Clone:
    """A repository of ``user`` in ``target``, with one commit of the files of this checkout as they are now."""
    listed = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    names = subprocess.run([*listed, "--exclude-standard"], check=True, capture_output=True, text=True).stdout
    present = "\0".join(name for name in names.split("\0") if name and os.path.lexists(ROOT / name))
    target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target / ".git", ignore_errors=True)
    archive = subprocess.run(
        ["tar", "--create", "--null", "--verbatim-files-from", "--files-from=-"],
        input=present.encode(),
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    subprocess.run(["tar", "--extract"], input=archive, cwd=target, check=True)
    subprocess.run(["chown", "-R", f"{user.name}:{user.name}", str(target)], check=True)
    git = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.invalid"]
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["commit", "--quiet", "--allow-empty", "--message=as it is"],
    ):
        user.must(*git, *command, cwd=target)
    return Clone(target, user)


@cache
def pip_settings() -> dict[str, str]:
    """Where pip finds packages, as variables: root's own settings are not the user's to read."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = re.findall(r"^(?:global|:env:)\.([a-z-]+)=(.+)$", "\n".join(lines), re.MULTILINE)
    settings = {f"PIP_{key.upper().replace('-', '_')}": ast.literal_eval(value) for key, value in found}
    return {name: " ".join(value.split()) for name, value in settings.items() if name != "PIP_CONFIG_FILE"}


def wait_for(what: str, found: Callable[[], Any], timeout: float) -> Any:
    """The first true value of ``found()``."""
    end = time.monotonic() + timeout
    while not (value := found()):
        if time.monotonic() > end:
            raise Failed(f"waited {timeout:g} s for {what}")
        time.sleep(0.1)
    return value


def slurm_jobs(*states: str) -> dict[str, str]:
    """Jobs of the cluster by number, each with its comment: the rule and its wildcards."""
    chosen = ",".join(states) or "all"
    command = ["squeue", "--noheader", f"--states={chosen}", "--format=%i %k"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def ranks(job: str) -> list[Rank]:
    """The ranks of a job that are running now, as their processes' environment tells."""
    found: dict[int, Rank] = {}
    for process, words, values in processes(job):  # the oldest first: a child that a rank forks looks like its rank
        if Path(words[0]).name.startswith("python") and "pipeline.launch" in words and "--rank" in words:
            node, gpus = values.get("SLURMD_NODENAME", ""), values.get("CUDA_VISIBLE_DEVICES", "")
            number = int(values["RANK"])
            found.setdefault(number, Rank(process.pid, number, node, gpus))
    return [found[number] for number in sorted(found)]


def processes(job: str) -> list[tuple[psutil.Process, list[str], dict[str, str]]]:
    """The processes of a job, the oldest first, each with its command and environment."""
    found = []
    for process in psutil.process_iter():
        try:
            words, values = process.cmdline(), process.environ()
            if words and values.get("SLURM_JOB_ID") == job:
                found.append((process.create_time(), process, words, values))
        except psutil.Error:  # it has ended meanwhile
            continue
    return [entry[1:] for entry in sorted(found, key=lambda entry: entry[:1])]


def held(job: str) -> psutil.Process:
    """The script of a job, stopped: the job goes on running until ``resume`` of it, or until it is cancelled."""
    begun = wait_for(
        "the job's script", lambda: [one for one, words, _ in processes(job) if "slurm_script" in " ".join(words)], 60
    )
    begun[0].suspend()
    return begun[0]


def json_lines(path: Path, *without: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in without} for record in records]
