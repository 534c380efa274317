"""Batches: the same rows at every layout, every row once an epoch, and what is labelled."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from megatron_ext.data import collate
from megatron_ext.data.collate import SequenceDataset
from megatron_ext.data.sampling import BatchRows, ForgetRetainSampler, Mixture, TopicRoundRobin, preferred_answer
from megatron_ext.data.sequences import Sequences


def sequences(count: int, seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    return Sequences.pack(
        [(rng.integers(3, 500, size=int(rng.integers(4, 30))).tolist(), int(rng.integers(1, 4))) for _ in range(count)]
    )


@pytest.mark.parametrize("count", [1, 7, 16, 19])
@pytest.mark.parametrize("data", [1, 2, 3])
def test_ranks_share_every_row_of_the_global_batch_once(count: int, data: int) -> None:
    dataset = SequenceDataset([sequences(40)])
    rows = list(range(count))
    shares = [dataset.micro_batches(rows, 4, rank, data) for rank in range(data)]
    assert len({len(share) for share in shares}) == 1, "ranks would wait for one another"
    dealt = [row for share in shares for batch in share for row in batch]
    assert sorted(row for row in dealt if row >= 0) == rows
    assert all(len(batch) == 4 for share in shares for batch in share)


@pytest.mark.parametrize("data", [1, 2, 3])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tokens", [1, 40, 1000])
def test_a_bound_on_tokens_holds_and_ranks_stay_together(tokens: int, packed: bool, data: int) -> None:
    dataset, rows = SequenceDataset([sequences(40)]), list(range(23))
    shares = [dataset.micro_batches(rows, 6, rank, data, tokens, packed) for rank in range(data)]
    dealt = [row for share in shares for batch in share for row in batch]
    assert sorted(row for row in dealt if row >= 0) == rows
    sizes = [[len(batch) for batch in share] for share in shares]
    assert all(each == sizes[0] for each in sizes), "ranks work on micro-batches of one size at the same time"
    assert sum(sizes[0]) * data - len(rows) < data, "what only fills is less than a row a rank"
    for share in shares:
        for batch in share:
            lengths = [int(dataset.lengths[row]) for row in batch if row >= 0]
            read = sum(lengths) if packed else len(batch) * max(lengths, default=0)
            assert len(batch) <= 6 and (len(batch) == 1 or read <= tokens)
    assert max(sizes[0]) == {1: 1, 40: min(6, max(sizes[0])), 1000: 6}[tokens]


def test_collate_labels_every_token_after_the_prompt() -> None:
    dataset = SequenceDataset(
        [Sequences.pack([([5, 6, 7, 8], 2), ([9, 10], 1)])], reference_logps=np.array([-1.5, -2.5])
    )
    batch = dataset.collate([0, 1, -1], torch.device("cpu"))
    assert batch.tokens.tolist() == [[5, 6, 7, 8], [9, 10, 0, 0], [0, 0, 0, 0]]
    assert batch.targets.tolist() == [7, 8, 10]
    # predicted from positions 1 and 2 of row 0 and position 0 of row 1, in hidden states [s, b] with b = 3
    assert batch.index.tolist() == [3, 6, 1]
    assert batch.sequence.tolist() == [0, 0, 1]
    assert batch.real.tolist() == [True, True, False]
    assert batch.reference_logps is not None and batch.reference_logps.tolist() == [-1.5, -2.5, 0.0]


@pytest.mark.parametrize(("multiple", "tail"), [(1, []), (4, [0, 0])])
def test_packed_rows_follow_one_another(multiple: int, tail: list[int]) -> None:
    """Only this has places in one row of tokens, and what fills it to a multiple, which is a row of its own."""
    dataset = SequenceDataset([Sequences.pack([([5, 6, 7, 8], 2), ([9, 10], 1)])])
    batch = dataset.collate([1, -1, 0], torch.device("cpu"), multiple=multiple, packed=True)
    assert batch.tokens.tolist() == [[9, 10, 5, 6, 7, 8, *tail]]
    assert batch.lengths == (2, 4, *([len(tail)] if tail else []))
    assert batch.index.tolist() == [0, 3, 4] and batch.targets.tolist() == [10, 7, 8]
    assert batch.sequence.tolist() == [0, 2, 2] and batch.real.tolist() == [True, False, True]
    assert dataset.collate([-1], torch.device("cpu"), multiple=multiple, packed=True).lengths == (multiple,)


def test_pool_numbers_rows_through_its_files() -> None:
    a, b = sequences(3, 1), sequences(4, 2)
    dataset = SequenceDataset([a, b])
    assert len(dataset) == 7
    np.testing.assert_array_equal(dataset.row(4)[0], b.row(1)[0])
    assert dataset.lengths[4] == b.lengths[1]


def test_an_epoch_is_one_pass_over_the_forget_set() -> None:
    sampler = ForgetRetainSampler(forget=10, retain=50, batch=4, epochs=3.0, seed=0)
    assert (sampler.steps_per_epoch, sampler.steps) == (3, 9)
    for epoch in range(3):
        rows = [row for step in range(3) for row in sampler.rows(epoch * 3 + step).forget]
        assert sorted(rows) == list(range(10))
    assert [sampler.epoch(i) for i in range(3)] == pytest.approx([0.4, 0.8, 1.0])
    orders = {tuple(sampler.rows(3 * epoch).forget) for epoch in range(3)}
    assert len(orders) == 3, "epochs are shuffled anew"


@pytest.mark.parametrize(
    ("forget", "accumulation", "expected"),
    [(40, 4, 10), (200, 4, 60), (400, 4, 120), (20, 4, 10), (30, 4, 10), (100, 2, 30)],
)
def test_steps_of_trainer_take_the_rows_that_its_loop_takes(forget: int, accumulation: int, expected: int) -> None:
    """Only this simulates transformers' loop: steps, warm-up, left-over micro-batches, and where the run stops."""
    epochs, rows = 10, 8  # 4 rows on each of 2 GPUs
    batch = rows * accumulation
    sampler = ForgetRetainSampler(forget, 50, batch, epochs, 0, accumulation)
    loader = -(-forget // rows)
    max_steps = -(-epochs * max(1, loader // accumulation) // 1)
    sizes, passes, pending, seen = [], [], 0, 0
    for epoch in range(epochs):
        for step in range(loader):
            if len(sizes) == max_steps:
                break
            seen += 1
            pending += min(rows, forget - step * rows)
            if seen % accumulation == 0 or (loader <= accumulation and step + 1 == loader):
                sizes.append(pending)
                passes.append(epoch)
                pending = 0
    taken = [sampler.rows(step).forget for step in range(sampler.steps)]
    assert (sampler.steps, [len(each) for each in taken]) == (len(sizes), sizes)
    assert [sampler.pass_of(step) for step in range(sampler.steps)] == passes
    if (batch, loader >= accumulation) == (32, True):
        assert sampler.steps == expected
    assert sampler.warmup_steps(1.0) == int(1.0 * forget // batch)
    run = TopicRoundRobin((sampler,))
    assert run.warmup_steps(1.0) == sampler.warmup_steps(1.0)
    assert [run.pass_of(step) for step in range(run.steps)] == passes
    ends = [i for i, (here, after) in enumerate(zip(passes, [*passes[1:], None], strict=True)) if here != after]
    assert [step for step in range(run.steps) if run.ends_epoch(step)] == ends
    flat = [row for each in taken for row in each]
    assert all(sorted(flat[i : i + forget]) == list(range(forget)) for i in range(0, len(flat) - forget + 1, forget))


def test_a_pass_over_two_topics_is_one_over_the_shorter() -> None:
    run = TopicRoundRobin(tuple(ForgetRetainSampler(forget, 50, 8, 2.0, 0) for forget in (40, 24)))
    assert (run.steps_per_epoch, run.steps, run.warmup_steps(1.0)) == (6, 12, 6)
    assert [run.pass_of(step) for step in range(12)] == [0] * 6 + [1] * 6
    assert [step for step in range(12) if run.ends_epoch(step)] == [5, 11]


@pytest.mark.parametrize(("forget", "steps", "moves"), [(400, 30, 42), (200, 10, 0)])
def test_pdu_s_code_moves_its_dual_variable_as_trainer_counts_passes(forget: int, steps: int, moves: int) -> None:
    """Only this has what open-unlearning's PDU does on forget10 and forget05, with 4 rows on each of 8 GPUs."""
    sampler = ForgetRetainSampler(forget, 50, 128, epochs=10, seed=0, accumulation=4)
    pieces, state, ended, expected = -(-forget // 32), 0.0, 0.0, []  # Trainer's state.epoch, now and at a pass's end
    for number in range(4 * steps):
        expected.append(ended)
        if (number + 1) % 4 == 0:
            state = number // pieces + (number % pieces + 1) / pieces
        if (number + 1) % pieces == 0:
            ended = state
    found = [passes for step in range(sampler.steps) for passes in sampler.trainer_passes(step)]
    assert found == pytest.approx(expected)
    assert (sampler.steps, sum(passes >= 5 for passes in found)) == (steps, moves)
    alone, two = TopicRoundRobin((sampler,)), TopicRoundRobin((sampler, sampler))
    assert [alone.trainer_passes(step) for step in range(steps)] == [sampler.trainer_passes(i) for i in range(steps)]
    assert two.trainer_passes(steps - 1) == (), "topics in turn have no steps of Trainer"


@pytest.mark.parametrize(("epochs", "nearest", "up"), [(0.1, 1, 1), (1.4, 4, 5), (1.6, 5, 5), (2.0, 6, 6)])
def test_a_part_of_a_pass_is_rounded_or_as_trainer_does_up(epochs: float, nearest: int, up: int) -> None:
    """Only this has passes that are no whole number."""
    assert ForgetRetainSampler(24, 50, 8, epochs, 0).steps == nearest
    assert ForgetRetainSampler(24, 50, 8, epochs, 0, accumulation=1).steps == up


def test_pairs_follow_from_seed_and_step_alone() -> None:
    sampler = ForgetRetainSampler(forget=10, retain=50, batch=4, epochs=3.0, seed=1)
    later = ForgetRetainSampler(forget=10, retain=50, batch=4, epochs=3.0, seed=1)
    assert [later.rows(i) for i in (7, 2)] == [sampler.rows(i) for i in (7, 2)]
    assert ForgetRetainSampler(forget=10, retain=50, batch=4, epochs=3.0, seed=2).rows(2) != sampler.rows(2)
    assert all(len(set(rows.retain)) == len(rows.forget) for rows in map(sampler.rows, range(9)))


def test_retain_rows_are_drawn_anew_for_each_step() -> None:
    sampler = ForgetRetainSampler(forget=10, retain=50, batch=4, epochs=3.0, seed=0)
    draws = {tuple(sampler.rows(step).retain) for step in range(9)}
    assert len(draws) == 9, "within an epoch too"
    assert sampler.rows(4) == BatchRows(forget=[2, 4, 6, 1], retain=[20, 3, 10, 9])


def test_a_preferred_answer_follows_from_seed_and_step() -> None:
    chosen = [preferred_answer(0, step, 3) for step in range(12)]
    assert set(chosen) == {0, 1, 2}
    assert chosen == [1, 1, 0, 2, 0, 0, 1, 1, 1, 0, 2, 1]
    assert [preferred_answer(0, step, 1) for step in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("window", [1, 4])
def test_mixture_keeps_shares_and_walks_each_source_in_passes(window: int) -> None:
    sizes, shares = {"a": 5, "b": 50, "c": 8}, {"a": 0.25, "b": 0.6, "c": 0.15}
    mixture = Mixture(sizes, shares, batch=10, window=window, seed=0)
    lengths = np.random.default_rng(0).integers(3, 40, size=63)
    batches = [mixture.rows(step, lengths) for step in range(100)]
    assert all(len(batch) == 10 for batch in batches)
    counts = Counter(row for batch in batches for row in batch)
    assert sum(counts[row] for row in range(5)) == 250
    assert sum(counts[row] for row in range(55, 63)) == 150
    assert {counts[row] for row in range(5)} == {50}
    assert {counts[row] for row in range(5, 55)} == {12}


def test_a_length_window_saves_padding_and_changes_no_count() -> None:
    lengths = np.random.default_rng(0).integers(3, 200, size=400)
    plain, sorted_ = (Mixture({"a": 400}, {"a": 1.0}, 20, window, 3) for window in (1, 10))
    padded = {
        m.window: sum(20 * int(lengths[m.rows(step, lengths)].max()) for step in range(20)) for m in (plain, sorted_)
    }
    assert padded[10] < 0.7 * padded[1]
    assert sorted(r for s in range(20) for r in sorted_.rows(s, lengths)) == list(range(400))


def test_a_batch_too_small_for_its_sources_is_refused() -> None:
    with pytest.raises(ValueError, match="global batch of 2"):
        Mixture({"a": 5, "b": 5, "c": 5}, {"a": 0.3, "b": 0.3, "c": 0.4}, batch=2, window=1, seed=0)


def test_sequences_without_a_label_are_refused_with_their_row() -> None:
    with pytest.raises(ValueError, match="row 1"):
        Sequences.pack([([1, 2], 1), ([3, 4], 2)])


def test_sequences_that_a_model_cannot_read_are_named() -> None:
    data = Sequences.pack([([1, 2, 3], 1), ([4, 99, 5, 6], 1)])
    data.check("x", vocabulary=100, context=4)
    with pytest.raises(ValueError, match="x, row 1: token id 99, the model's vocabulary is 99"):
        data.check("x", vocabulary=99, context=4)
    with pytest.raises(ValueError, match="x, row 1: 4 tokens, the model's context is 3"):
        data.check("x", vocabulary=100, context=3)


def test_sequences_survive_the_disk(tmp_path) -> None:  # type: ignore[no-untyped-def]
    original = sequences(9)
    original.save(tmp_path / "a.npz")
    loaded = Sequences.load(tmp_path / "a.npz")
    assert loaded.sha256() == original.sha256()
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("rows", [[0, 1, -1], [2], [-1]])
def test_what_is_packed_for_one_copy_comes_out_as_it_was(rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but for the copy: types of one, four and eight bytes, of any length, each where it can be read."""
    dataset = SequenceDataset([sequences(3)], np.arange(3) / 7)
    plain = dataset.collate(rows, torch.device("cpu"))

    def by_way_of_bytes(arrays: Mapping[str, np.ndarray], _: torch.device) -> dict[str, torch.Tensor]:
        return collate.unpacked(collate.pack(arrays, pin=False), arrays)

    monkeypatch.setattr(collate, "transfer", by_way_of_bytes)
    packed = dataset.collate(rows, torch.device("cpu"))
    for field in dataclasses.fields(plain):
        wanted, found = getattr(plain, field.name), getattr(packed, field.name)
        if field.name == "lengths":
            assert found is wanted is None
            continue
        assert found.dtype == wanted.dtype and found.shape == wanted.shape and torch.equal(found, wanted), field.name


def test_a_source_without_a_row_is_refused() -> None:
    """Only this has one: its passes would have no end."""
    with pytest.raises(ValueError, match="data: 'b' holds no sequence"):
        Mixture({"a": 5, "b": 0}, {"a": 0.5, "b": 0.5}, batch=2, window=1, seed=0)


@pytest.mark.parametrize("data", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_a_bound_on_tokens_counts_preferred_answers(packed: bool, data: int) -> None:
    """Only this gives rows others beside them, which had come on top of the bound."""
    dataset, rows = SequenceDataset([sequences(40)]), list(range(17))
    beside = {row: 39 - row for row in rows}
    shares = [dataset.micro_batches(rows, 6, rank, data, 120, packed, beside) for rank in range(data)]
    assert sorted(row for share in shares for batch in share for row in batch if row >= 0) == rows
    assert [[len(batch) for batch in share] for share in shares] == [[len(batch) for batch in shares[0]]] * data
    for batch in (batch for share in shares for batch in share):
        lengths = [int(dataset.lengths[each]) for row in batch if row >= 0 for each in (row, beside[row])]
        read = sum(lengths) if packed else 2 * len(batch) * max(lengths, default=0)
        assert len(batch) == 1 or read <= 120
    assert max(len(batch) for batch in shares[0]) > 1


@pytest.mark.parametrize(
    ("shares", "batch"), [([1 / 6] * 6, 8), ([0.1] * 10, 32), ([0.25] * 4, 5), ([0.22, 0.26, 0.26, 0.26], 4)]
)
@pytest.mark.parametrize("window", [1, 3])
def test_many_sources_in_a_small_batch_fill_it_and_repeat_no_row(shares: list[float], batch: int, window: int) -> None:
    """Only this has shares that do not come out even in a batch, of more than three sources."""
    sizes = {f"s{i}": 400 for i in range(len(shares))}
    mixture = Mixture(sizes, dict(zip(sizes, shares, strict=True)), batch, window, 0)
    lengths = np.arange(400 * len(shares))
    batches = [mixture.rows(step, lengths) for step in range(60)]
    assert {len(rows) for rows in batches} == {batch}
    rows = [row for each in batches for row in each]
    assert len(set(rows)) == len(rows), "no source is through with its first pass"
    for i, share in enumerate(shares):
        assert sum(row // 400 == i for row in rows) == pytest.approx(share * batch * 60, abs=1)
    again = Mixture(sizes, dict(zip(sizes, shares, strict=True)), batch, window, 0)
    assert again.rows(41, lengths) == batches[41], "a run that goes on draws the same"
