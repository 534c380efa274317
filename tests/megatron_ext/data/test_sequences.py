"""Sequences, parts of a file of them, and micro-batches."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from megatron_ext.data.collate import SequenceDataset
from megatron_ext.data.sequences import Sequences
from megatron_ext.specs import TrainSpec, read
from megatron_ext.steps import train
from tests.support import worlds


def rows(sequences: Sequences) -> list[tuple[list[int], int]]:
    return [(ids.tolist(), prompt) for ids, prompt in map(sequences.row, range(len(sequences)))]


@pytest.mark.parametrize(("share", "count"), [(1.0, 37), (0.5, 18), (0.2, 7), (0.001, 1)])
def test_a_part_is_a_share_of_the_rows_in_their_order(share: float, count: int) -> None:
    whole = worlds.sequences(37, 0)
    part = rows(Sequences.part(whole, share, seed=5))
    places = [rows(whole).index(row) for row in part]
    assert len(part) == count and places == sorted(set(places))


def test_a_part_follows_from_the_seed_and_grows_with_the_share() -> None:
    whole = worlds.sequences(200, 0)
    small, again, other = (Sequences.part(whole, 0.1, seed) for seed in (1, 1, 2))
    assert small.sha256() == again.sha256() != other.sha256()
    large = rows(Sequences.part(whole, 0.3, 1))
    assert all(row in large for row in rows(small))
    # Not the first ones, and not the rows that batches of the same seed begin with.
    assert rows(small) != rows(whole)[:20]
    first = np.random.default_rng([1, 2, 0, 0]).permutation(200)[:20]
    assert rows(small) != rows(Sequences.pack(rows(whole)[i] for i in sorted(first)))


def test_training_on_a_part_is_training_on_a_file_of_its_rows(tmp_path) -> None:  # type: ignore[no-untyped-def]
    worlds.write_data(tmp_path)
    forget, retain, part = (tmp_path / f"{name}.npz" for name in ("forget", "retain", "part"))
    Sequences.part(Sequences.load(forget), 0.2, seed=4).save(part)
    assert len(Sequences.load(part)) == 6
    common = {"seed": 4, "steps": 5}
    for name, changes in (
        ("of a part", {"data": {str(forget): 0.5, str(retain): 0.5}, "parts": {str(forget): 0.2}}),
        ("of its file", {"data": {str(part): 0.5, str(retain): 0.5}}),
        ("of all", {"data": {str(forget): 0.5, str(retain): 0.5}}),
    ):
        train.main([str(worlds.train_spec(tmp_path, name, **common, **changes))])
    logs, weights = {}, {}
    for name in ("of a part", "of its file", "of all"):
        lines = (tmp_path / name / "steps.jsonl").read_text().splitlines()
        logs[name] = [json.loads(line)["loss"] for line in lines]
        weights[name] = load_file(tmp_path / name / "checkpoint" / "model.safetensors")
    assert logs["of a part"] == logs["of its file"] != logs["of all"]
    assert all(value.equal(weights["of its file"][name]) for name, value in weights["of a part"].items())


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ({"other.npz": 0.5}, "parts: 'other.npz' is not in 'data'; allowed: "),
        ({"forget.npz": 0.0}, "greater than 0"),
        ({"forget.npz": 1.5}, "less than or equal to 1"),
    ],
)
def test_parts_that_are_none_are_refused(tmp_path, parts: dict[str, float], error: str) -> None:  # type: ignore[no-untyped-def]
    path = worlds.train_spec(tmp_path, data={"forget.npz": 1.0})
    values = read(path, TrainSpec).model_dump()
    with pytest.raises(ValidationError, match=error):
        TrainSpec.model_validate({**values, "parts": parts})


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("offsets", [0, 5, 3, 9], "offsets, row 1: 3 comes after 5"),
        ("offsets", [0, 3, 6], "offsets: 3 numbers do not divide 9 ids into 3 sequences"),
        ("offsets", [1, 3, 6, 9], "offsets: 4 numbers do not divide 9 ids"),
        ("offsets", [0, 3, 6, 12], "offsets: 4 numbers do not divide 9 ids"),
        ("offsets", [0.0, 3.0, 6.0, 9.0], "offsets: float64"),
        ("offsets", [], "offsets: float64"),
        ("prompt_lengths", [1, 0, 1], "prompt_lengths, row 1: 0 of 3 tokens"),
        ("prompt_lengths", [1, 1, 3], "prompt_lengths, row 2: 3 of 3 tokens"),
        ("prompt_lengths", [[1], [1], [1]], "prompt_lengths: int64, of 2 dimensions"),
        ("ids", [0.5] * 9, "ids: float64"),
        ("ids", None, "lacks ids"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, name, array, expected) -> None:  # type: ignore[no-untyped-def]
    """Offsets that fall had been taken: rows of no length, and tokens that belong to two."""
    arrays = {"ids": list(range(9)), "offsets": [0, 3, 6, 9], "prompt_lengths": [1, 1, 2], name: array}
    np.savez(tmp_path / "x.npz", **{key: np.array(value) for key, value in arrays.items() if value is not None})
    with pytest.raises(ValueError) as error:
        Sequences.load(tmp_path / "x.npz")
    assert str(error.value).startswith(f"{tmp_path / 'x.npz'}: ") and expected in str(error.value)


def test_a_micro_batch_is_as_wide_as_its_longest_row() -> None:
    """And no wider, but to a multiple that is asked for; one of nothing but rows that fill has one column."""
    import torch

    data = SequenceDataset([Sequences.pack([([2] * length, 1) for length in (5, 3, 7)])])
    cpu = torch.device("cpu")
    assert data.collate([0, 1], cpu).tokens.shape == (2, 5)
    assert data.collate([1, 2, -1], cpu, multiple=4).tokens.shape == (3, 8)
    assert data.collate([-1, -1], cpu).tokens.shape == (2, 1)


def _cut(path: Path) -> None:
    np.savez(path, ids=np.arange(99))
    path.write_bytes(path.read_bytes()[:-40])


def _npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.arange(3))


@pytest.mark.parametrize(
    "write", [lambda path: path.write_text("no archive"), lambda path: path.write_bytes(b""), _cut, _npy]
)
def test_a_file_that_is_no_archive_is_named(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """Only this reads a text, an empty file, a cut one and a single array, of which numpy says something else each."""
    write(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"x\.npz: no \.npz file, or not all of it"):
        Sequences.load(tmp_path / "x.npz")
