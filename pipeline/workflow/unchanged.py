"""What Snakemake has found nothing to do about, so that it need not be asked again: minutes with thousands of jobs.

It is asked whenever anything that it looks at differs from what it saw: a file's time or size, a file that is there or
not, what is in a user's file, a specification, a source file, a rule, the image, its version, or what it notes of jobs
that were cut short.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from megatron_ext.atomic_files import TEMPORARY, write_text
from pipeline.config.site import ROOT, Site
from pipeline.launch import lease
from pipeline.launch.image import image
from pipeline.steps.programs import source_digest
from pipeline.workflow.given_files import fingerprint
from pipeline.workflow.plan import Plan

NAME = ".unchanged"
# Snakemake's own, in the folder where it is started: a file for each output of a job that began and did not end.
CUT_SHORT = Path(".snakemake", "incomplete")
STAMP = ".snakemake_timestamp"  # in a folder that a job wrote; its time is the folder's
OWN = (NAME, lease.NAME)  # change without a job
LOGS = "logs"  # no job reads them


class State:
    """An experiment's files and all that decides whether jobs run again, at one moment.

    Args:
        plan: The experiment's jobs.
        site: The site.
        asked: How Snakemake is started: its command, and the texts of the files that it names.
    """

    def __init__(self, plan: Plan, site: Site, asked: Iterable[str]):
        self.file = plan.paths.root / NAME
        self.uncertain = any(path.is_file() for path in CUT_SHORT.rglob("*"))
        total = hashlib.sha256()
        for line in (*_asked(plan, site, asked), *self._files(plan)):
            total.update(f"{line}\n".encode(errors="surrogateescape"))
        self.digest = total.hexdigest()

    def is_known(self) -> bool:
        """Whether Snakemake had nothing to do about exactly this."""
        try:
            return not self.uncertain and self.file.read_text(encoding="utf-8") == self.digest
        except (OSError, UnicodeDecodeError):
            return False

    def keep(self) -> None:
        """Remember that Snakemake has nothing to do about this."""
        if not self.uncertain:
            write_text(self.file, self.digest)

    def _files(self, plan: Plan) -> Iterator[str]:
        """A line for each file that jobs read or write, in an order that does not depend on the disk's."""
        root = plan.paths.root
        outside = {path for job in plan.jobs.values() for path in job.inputs if not path.is_relative_to(root)}
        for path in sorted({*outside, *(path / STAMP for path in outside)}):
            yield _seen(os.fspath(path))
        yield fingerprint(outside)
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not TEMPORARY.fullmatch(name))
            if folder == os.fspath(root) and LOGS in folders:
                folders.remove(LOGS)
            # What lies behind a link to a folder is not walked.
            self.uncertain |= any(os.path.islink(os.path.join(folder, name)) for name in folders)
            names = sorted(name for name in files if name not in OWN and not TEMPORARY.fullmatch(name))
            for name in (*folders, *names):
                yield _seen(os.path.join(folder, name))


def _asked(plan: Plan, site: Site, asked: Iterable[str]) -> Iterator[str]:
    """A line for everything that is no file of the experiment: where and how Snakemake is asked, and each job."""
    yield f"{platform.python_version()} {version('snakemake')} {os.path.realpath('.')} {list(asked)}"
    yield f"{site.model_dump_json()} {image(site, True)} {image(site, False)}"
    rules = [ROOT / "Snakefile", *sorted((ROOT / "pipeline" / "workflow").rglob("*.*"))]
    for path in [path for path in rules if path.suffix in ("", ".smk", ".py")]:
        yield f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    for job in plan.jobs.values():
        yield f"{job.name} {source_digest(job.spec)} {job.spec.model_dump_json()} {[*map(str, job.inputs)]}"


def _seen(path: str) -> str:
    """What Snakemake sees of a path: its time, its size, and those of what it links to."""
    seen = []
    for look in (os.lstat, os.stat):
        try:
            found = look(path)
            seen.append(f"{found.st_mtime_ns} {found.st_size} {found.st_ino} {found.st_mode}")
        except OSError:
            seen.append("none")
    return f"{path} {' '.join(seen)}"
