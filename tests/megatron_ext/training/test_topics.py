"""A topic's terms: the preferred answers that belong to a step's forget rows, and their reference log-probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.sequences import Sequences, save_arrays
from megatron_ext.specs import Topic, UnlearnSpec
from tests.support import worlds

ROWS, VARIANTS = 5, 3


@pytest.fixture
def topic(tmp_path: Path) -> Topic:
    """Three preferred answers of each of five forget rows, with numbers for references that tell them apart."""
    forget = worlds.sequences(ROWS, 1)
    prompts = [forget.row(row)[0][: forget.row(row)[1]].tolist() for row in range(ROWS)]
    answers = [(prompt + [2 + k] * 4, len(prompt)) for prompt in prompts for k in range(VARIANTS)]
    sets = {"forget_data": forget, "retain_data": worlds.sequences(8, 2), "preferred_answers": Sequences.pack(answers)}
    files = {key: tmp_path / f"{key}.npz" for key in sets}
    for key, sequences in sets.items():
        sequences.save(files[key])
    for number, key in enumerate(("forget_data", "preferred_answers")):
        save_arrays(
            tmp_path / f"{key}-logps.npz",
            log_probs=-100.0 * number - np.arange(len(sets[key])),
            data_sha256=np.array(sets[key].sha256()),
            model_fingerprint=np.array("model"),
        )
    caches = {
        "reference_logps": tmp_path / "forget_data-logps.npz",
        "preferred_answers_logps": tmp_path / "preferred_answers-logps.npz",
    }
    return Topic(**files, **caches)


def test_a_chosen_answer_belongs_to_its_forget_row_and_changes_over_steps(topic: Topic, tmp_path: Path) -> None:
    from megatron_ext.training.topics import TopicData

    spec = UnlearnSpec.model_validate(
        {
            "checkpoint": str(tmp_path),
            "topics": [topic.model_dump()],
            "forget_loss": {"name": "dpo"},
            "retain_loss": {"name": "nll"},
            "rule": {"name": "weighted-sum"},
            "epochs": 10.0,
            "batching": {"global_batch": 2, "micro_batch": 2},
            "optimizer": {"learning_rate": 0.1},
            "output": str(tmp_path / "out"),
        }
    )
    data = TopicData(topic, spec, "model", worlds.CONFIG)
    variants = []
    for step in range(12):
        term = data.terms(step)[0]
        assert term.preferred_rows is not None and set(term.preferred_rows) == set(term.rows)
        chosen = set()
        for row, answer in term.preferred_rows.items():
            (ids, prompt), (forgotten, length) = term.dataset.row(answer), term.dataset.row(row)
            assert ids[:prompt].tolist() == forgotten[:length].tolist(), "another question's answer"
            variant = int(ids[-1]) - 2
            assert term.dataset.reference_logps is not None
            assert term.dataset.reference_logps[row] == -row
            assert term.dataset.reference_logps[answer] == -100.0 - (row * VARIANTS + variant)
            chosen.add(variant)
        assert len(chosen) == 1, "one variant a step"
        read = [*term.rows, *term.preferred_rows.values()]
        assert term.tokens == sum(len(term.dataset.row(row)[0]) for row in read), "both answers of a row are read"
        variants += chosen
    assert set(variants) == set(range(VARIANTS))
    assert [data.terms(step)[0].preferred_rows for step in (3, 7)] == [
        TopicData(topic, spec, "model", worlds.CONFIG).terms(step)[0].preferred_rows for step in (3, 7)
    ]
