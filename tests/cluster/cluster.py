"""A Slurm cluster on one machine: ``cluster.py start|stop|status FOLDER``, as root; see ``install.sh``.

munge, one controller and two nodes, with GPU devices that are only names, and a database of accounts where it is asked
for. Everything lies in FOLDER but two links in ``/etc/slurm``: a step that Snakemake starts in a job does not inherit
``SLURM_CONF``. One cluster runs at a time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ETC = Path("/etc/slurm")
LINKED = ("slurm.conf", "gres.conf")
MUNGE = Path("/run/munge")  # where every program of Slurm looks for its socket
NULL_DEVICE = os.makedev(1, 3)
# Of the database: ports beside the controller's, what it holds, and the account and user that it knows.
ACCOUNTING_PORT, DATABASE_PORT = 20, 21
DATABASE = "slurm_accounts"
ACCOUNT, USER = "project", "unlearn"


def configuration(
    folder: Path, host: str, port: int, nodes: int, cpus: int, memory_mb: int, gpus: int, accounting: bool
) -> str:
    """``slurm.conf``."""
    accounts = ["AccountingStorageType=accounting_storage/none"]
    if accounting:
        accounts = [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={port + ACCOUNTING_PORT}",
            "AccountingStorageEnforce=associations,qos",
        ]
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={port}",
        "SlurmUser=root",
        "SlurmdUser=root",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/run/slurmctld.pid",
        f"SlurmdPidFile={folder}/run/slurmd.%n.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/slurmd.%n.log",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        "MpiDefault=none",
        "SwitchType=switch/none",
        "TaskPlugin=task/none",
        # No control groups: processes are found by their parents, memory is measured every second and its limit held.
        "ProctrackType=proctrack/linuxproc",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=1",
        "JobAcctGatherParams=OverMemoryKill",
        *accounts,
        "JobCompType=jobcomp/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=bf_interval=1,sched_interval=1",
        "KillWait=10",
        "MinJobAge=600",  # squeue tells how jobs ended that long, which stands in for accounting
        "ReturnToService=2",
        "GresTypes=gpu",
        "SlurmdParameters=config_overrides",  # nodes may claim more cores and memory than this machine has
        "PropagateResourceLimits=NONE",
    ]
    for i in range(1, nodes + 1):
        lines.append(
            f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + i} Sockets=1 CoresPerSocket={cpus} "
            f"ThreadsPerCore=1 RealMemory={memory_mb} Gres=gpu:{gpus} State=UNKNOWN"
        )
    lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    return "\n".join(lines) + "\n"


def start(folder: Path, port: int, nodes: int, cpus: int, memory_mb: int, gpus: int, accounting: bool) -> None:
    if running(folder):
        sys.exit(f"a cluster runs in {folder} already")
    for name in LINKED:
        link = ETC / name
        if link.exists() and not (link.is_symlink() and not running(link.resolve().parent)):
            sys.exit(f"{link} belongs to another cluster ({link.resolve()}), and this one needs that path")
    for name in ("dev", "log", "run", "spool", "state"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    for i in range(gpus):  # slurmd wants a character device for each GPU
        device = folder / "dev" / f"gpu{i}"
        if not device.exists():
            os.mknod(device, 0o666 | stat.S_IFCHR, NULL_DEVICE)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(configuration(folder, host, port, nodes, cpus, memory_mb, gpus, accounting))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/dev/gpu[0-{gpus - 1}]\n")
    ETC.mkdir(exist_ok=True)
    for name in LINKED:
        (ETC / name).unlink(missing_ok=True)
        (ETC / name).symlink_to(folder / name)
    if not answers("munge", "-n"):
        start_munge(folder)
    if accounting:
        start_accounting(folder, port)
    subprocess.run(["slurmctld", "-c", "-f", folder / "slurm.conf"], check=True)
    for i in range(1, nodes + 1):
        subprocess.run(["slurmd", "-f", folder / "slurm.conf", "-N", f"n{i}"], check=True)
    if not until(lambda: slurm(folder, "sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle"] * nodes):
        sys.exit(f"the nodes did not come up; see {folder}/log")


def start_munge(folder: Path) -> None:
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(os.urandom(1024))
    MUNGE.mkdir(parents=True, exist_ok=True)
    MUNGE.chmod(0o755)
    files = {"key": key, "pid": folder / "run/munged.pid", "log": folder / "log/munged.log"}
    options = [f"--{name}-file={path}" for name, path in files.items()]
    # --force: it refuses files below a folder that others may write to, such as /tmp.
    subprocess.run(["munged", "--force", f"--seed-file={folder}/run/munged.seed", *options], check=True)
    until(lambda: answers("munge", "-n"))


def start_accounting(folder: Path, port: int) -> None:
    """A database and Slurm's program before it, which know one account and its user."""
    data, ready = folder / "database", folder / "run" / "database.sock"
    at = ["--host=127.0.0.1", f"--port={port + DATABASE_PORT}", "--user=slurm", "--password=slurm"]
    with (folder / "log/database.log").open("a") as log:
        if not data.exists():
            made = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}"]
            subprocess.run(made, check=True, stdout=log, stderr=log)
        (folder / "database.sql").write_text(
            f"CREATE DATABASE IF NOT EXISTS {DATABASE};\n"
            "CREATE OR REPLACE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';\n"
            f"GRANT ALL ON {DATABASE}.* TO 'slurm'@'127.0.0.1';\n"
        )
        options = [f"--datadir={data}", f"--socket={ready}", f"--pid-file={folder}/run/mariadbd.pid"]
        options += ["--bind-address=127.0.0.1", f"--port={port + DATABASE_PORT}", f"--init-file={folder}/database.sql"]
        command = ["mariadbd", "--no-defaults", "--user=root", *options]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    if not until(lambda: answers("mysql", "--no-defaults", *at, "--execute=SELECT 1")):
        sys.exit(f"the database did not come up; see {folder}/log")
    settings = folder / "slurmdbd.conf"
    settings.touch(mode=0o600)
    settings.write_text(
        "\n".join(
            [
                *("AuthType=auth/munge", "DbdHost=localhost", "DbdAddr=127.0.0.1", f"DbdPort={port + ACCOUNTING_PORT}"),
                *("SlurmUser=root", "StorageType=accounting_storage/mysql", "StorageHost=127.0.0.1"),
                *(f"StoragePort={port + DATABASE_PORT}", "StorageUser=slurm", "StoragePass=slurm"),
                *(f"StorageLoc={DATABASE}", f"LogFile={folder}/log/slurmdbd.log", f"PidFile={folder}/run/slurmdbd.pid"),
            ]
        )
        + "\n"
    )
    subprocess.run(["slurmdbd"], check=True, env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")})
    if not until(lambda: _add(folder, "cluster", "test")):
        sys.exit(f"the accounts cannot be kept; see {folder}/log")
    _add(folder, "account", ACCOUNT)
    _add(folder, "user", USER, f"account={ACCOUNT}")


def _add(folder: Path, *what: str) -> bool:
    return bool(slurm(folder, "sacctmgr", "--immediate", "add", *what))


def stop(folder: Path) -> None:
    """End jobs, then nodes, controller and what else was started here; what lives a minute longer is killed."""
    if running(folder):
        jobs = slurm(folder, "squeue", "--noheader", "--format=%i").split()
        if jobs:
            slurm(folder, "scancel", *jobs)
            until(lambda: not slurm(folder, "squeue", "--noheader"))
    for pattern in ("slurmd.*.pid", "slurmctld.pid", "slurmdbd.pid", "mariadbd.pid", "munged.pid"):
        pids = [pid for file in (folder / "run").glob(pattern) if (pid := living(file))]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        if not until(lambda pids=pids: not any(map(exists, pids))):
            for pid in filter(exists, pids):
                os.kill(pid, signal.SIGKILL)
    for name in LINKED:
        link = ETC / name
        if link.is_symlink() and link.readlink() == folder / name:
            link.unlink()


@contextmanager
def without(folder: Path, node: str, program: str) -> Iterator[None]:
    """A node on which a program is not installed: its slurmd, and all that it starts, sees an empty device there.

    The node must have no job.
    """
    command = ["slurmd", "-f", str(folder / "slurm.conf"), "-N", node]
    place = shutil.which(program)
    assert place, f"{program} is not installed on any node"
    _end(folder, node)
    hidden = 'mount --bind /dev/null "$0" && exec "$@"'
    subprocess.run(["unshare", "--mount", "sh", "-c", hidden, place, *command], check=True)
    try:
        yield
    finally:
        _end(folder, node)
        subprocess.run(command, check=True)
        until(lambda: slurm(folder, "sinfo", "--noheader", f"--nodes={node}", "--format=%T").strip() == "idle")


def _end(folder: Path, node: str) -> None:
    pid = living(folder / "run" / f"slurmd.{node}.pid")
    assert pid, f"{node} is not up"
    os.kill(pid, signal.SIGTERM)
    until(lambda: not exists(pid))


def running(folder: Path) -> bool:
    return living(folder / "run" / "slurmctld.pid") is not None


def living(file: Path) -> int | None:
    """The process that the pid file names, where it lives and is one of ours rather than a number used again."""
    try:
        pid = int(file.read_text())
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        return None
    return pid if file.name.startswith(name) else None


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def answers(*command: str) -> bool:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def slurm(folder: Path, *command: str) -> str:
    """What a Slurm command prints; nothing where the controller does not answer."""
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def until(done: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether ``done`` became true in that time."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("start", "stop", "status"))
    parser.add_argument("folder", type=lambda text: Path(text).resolve())
    parser.add_argument("--port", type=int, default=6817, help="of the controller; the nodes' are the next ones")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=4, help="of each node, whatever the machine has")
    parser.add_argument("--memory-mb", type=int, default=64000, help="of each node, likewise")
    parser.add_argument("--gpus", type=int, default=4, help="of each node")
    parser.add_argument("--accounting", action="store_true", help="with a database, which knows one account and user")
    given = parser.parse_args()
    if given.action == "status":
        print(slurm(given.folder, "sinfo", "--Node", "--long") if running(given.folder) else "not running")
    elif os.geteuid() != 0:
        sys.exit("needs root")
    elif given.action == "start":
        start(given.folder, given.port, given.nodes, given.cpus, given.memory_mb, given.gpus, given.accounting)
    else:
        stop(given.folder)


if __name__ == "__main__":
    main()
