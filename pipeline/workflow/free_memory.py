"""How much memory jobs on this machine may take together."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

GROUPS, MEMBER = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_memory(groups: Path = GROUPS, member: Path = MEMBER) -> int:
    """Bytes that programs started now may take: what is free, and what limits leave to the control groups (version 2)
    that this process is in.

    Args:
        groups: Where control groups are mounted.
        member: The file that names this process's own.
    """
    free = psutil.virtual_memory().available
    with suppress(OSError):
        named = [line for line in member.read_text(encoding="utf-8").splitlines() if line.startswith("0::")]
        own = groups / (named[0][3:].strip("/") if named else "")
        for group in (own, *own.parents):
            if group.is_relative_to(groups):
                free = min(free, _left(group, free))
    return max(0, free)


def _left(group: Path, free: int) -> int:
    """What a group's limit leaves, where it has one: files in memory are given up when programs ask for it."""
    try:
        limit, used = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # no such group, or "max": no limit
        return free
    return limit - used + int(counts.get("inactive_file", 0))
