"""What jobs on this machine may take together."""

from __future__ import annotations

from pathlib import Path

import psutil

from pipeline.workflow.free_memory import free_memory

MIB = 2**20


def test_the_narrowest_limit_of_the_groups_around_counts(tmp_path: Path) -> None:
    """Only here is there a limit below what the machine has: files that can be given up are not counted as used."""
    groups, member = tmp_path / "groups", tmp_path / "member"
    member.write_text("4:memory:/elsewhere\n0::/user/job\n")
    for group, limit in (("", "max"), ("user", str(100 * MIB)), ("user/job", str(400 * MIB))):
        folder = groups / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{60 * MIB}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {20 * MIB}\n")
    assert free_memory(groups, member) == (100 - 60 + 20) * MIB


def test_without_limits_it_is_what_the_machine_has_free(tmp_path: Path) -> None:
    free = free_memory(tmp_path, tmp_path / "none")
    assert 0 < free <= psutil.virtual_memory().total
