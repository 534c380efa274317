"""What a model has answered so far, kept on disk, so that a program that was killed goes on where it was.

Each data-parallel rank appends to a file of its own; at the start all ranks know what all files hold.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from megatron_ext.atomic_files import replacing_file, sync, write_json
from megatron_ext.checkpoint.identity import differences, digests

if TYPE_CHECKING:
    from megatron_ext.distributed.process_groups import Ranks


class ResponseCache:
    """A table from keys to JSON values on disk. A line that a kill cut short is left out.

    The constructor and ``discard`` are collective over all ranks; ``add`` and ``get`` are not.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any], ranks: Ranks) -> None:
        """Read what the folder holds. Collective over all ranks.

        Args:
            folder: Where the table lies; None keeps nothing.
            identity: Everything that the values depend on beside their keys and the code: model, precision, layout.
                What a folder of another identity holds is dropped, with a message.
            ranks: Where this process stands.
        """
        from megatron_ext.distributed.collectives import barrier, from_first_rank

        self.folder = folder
        self._writes = folder is not None and ranks.is_last_stage and ranks.tensor_rank == 0
        self._name = f"rank-{ranks.data_rank}.jsonl"
        self._file: IO[str] | None = None
        self._ranks = ranks
        barrier(ranks)
        self._known = from_first_rank(lambda: {} if folder is None else self._open(folder, identity), ranks)

    def get(self, key: str) -> Any | None:
        """The value of a key that was known at the start; None where there is none."""
        return self._known.get(key)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, answers: Sequence[tuple[str, Any]]) -> None:
        """Keep keys with values that this rank has computed: on disk when this returns, for those who start later."""
        if not self._writes or self.folder is None:
            return
        if self._file is None:
            self._file = (self.folder / self._name).open("a", encoding="utf-8")
        self._file.writelines(json.dumps([key, value], separators=(",", ":")) + "\n" for key, value in answers)
        self._file.flush()

    def discard(self) -> None:
        """Remove the folder: what the answers were for is written."""
        from megatron_ext.distributed.collectives import barrier

        if self._file is not None:
            self._file.close()
        barrier(self._ranks)
        if self.folder is not None and self._ranks.world_rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self, folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
        """What the folder holds, which is made or emptied where it is not of this identity."""
        head, wanted = folder / "identity.json", digests(identity)
        differ = differences(_identity(head), wanted)
        if not differ:
            known = dict(_lines(sorted(folder.glob("rank-*.jsonl"))))
            if known:
                print(f"going on: {len(known)} answers are in {folder}", flush=True)
            return known
        if folder.exists():
            what = f"is of another model, data, layout or code ({', '.join(differ)})"
            print(f"{folder} {what}: starting from the beginning", flush=True)
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_json(head, wanted)
        sync(head)
        return {}


def _identity(head: Path) -> Any:
    """The identity that a file says; None where it says none."""
    try:
        return json.loads(head.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _lines(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    for file in files:
        text = file.read_bytes()
        if not text.endswith(b"\n"):  # cut short by a kill; what follows must begin on a line of its own
            text = text[: text.rfind(b"\n") + 1]
            with replacing_file(file) as whole:
                whole.write(text)
        for number, line in enumerate(text.splitlines(), 1):
            try:
                key, value = json.loads(line)
                hash(key)
            except (ValueError, TypeError, RecursionError) as error:  # a machine has crashed while it was written
                print(f"{file}, line {number}: is left out: {error}", flush=True)
                continue
            yield key, value


@dataclass(frozen=True)
class Recalled:
    """What is known of requests, by their number.

    Attributes:
        keys: Under which each one's answer is kept; none where nothing is.
        known: The answers of batches that are whole.
        left: The other batches.
    """

    keys: dict[int, str]
    known: dict[int, Any]
    left: list[list[int]]


def recall(
    answers: ResponseCache | None, kind: str, requests: Sequence[Sequence[Any]], batches: Iterable[Sequence[int]]
) -> Recalled:
    """What is known of requests that are computed in these batches.

    The last bits of a number depend on what it is computed beside. So a batch is computed again as a whole where one of
    its answers lacks, an answer of another batch is not this one's, and a program that was killed ends with the bits of
    one that was not.

    Args:
        answers: What is known; None where nothing is kept.
        kind: Of the requests.
        requests: The parts of each that tell it from others.
        batches: All batches, of requests by number, whatever is known of them.
    """
    if answers is None:
        return Recalled({}, {}, [list(batch) for batch in batches])
    recalled = Recalled({}, {}, [])
    for batch in batches:
        name = key_of(kind, *(requests[i] for i in batch))
        own = {i: f"{name}:{place}" for place, i in enumerate(batch)}
        found = {i: value for i, key in own.items() if (value := answers.get(key)) is not None}
        recalled.keys.update(own)
        if len(found) == len(own):
            recalled.known.update(found)
        else:
            recalled.left.append(list(batch))
    return recalled


def key_of(kind: str, *parts: Any) -> str:
    """A key for a batch of requests of this kind, from what tells each from others."""
    text = json.dumps(parts, separators=(",", ":"))
    return f"{kind}:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
