import json

import numpy as np
import pytest
import yaml

from megatron_ext.checkpoint.fingerprint import model_fingerprint
from megatron_ext.data.reference_log_probs import load_reference
from megatron_ext.data.sequences import Sequences
from tests.support import inference_cases as cases
from tests.support.distributed import run_ranks


def _run_each(folders):
    """The program on ``spec.yaml`` of each folder; the message of the error, None where there was none."""
    from megatron.core import parallel_state

    from megatron_ext.steps import reference

    messages = []
    for folder in folders:
        try:
            reference.main([str(folder / "spec.yaml")])
            messages.append(None)
        except ValueError as error:
            messages.append(str(error))
            parallel_state.destroy_model_parallel()  # a failed program's process ends; this one goes on
    return messages


def _prepare(folder, checkpoint, rows):
    folder.mkdir()
    Sequences.pack(rows).save(folder / "forget.npz")
    spec = {
        "program": "reference",
        "checkpoint": str(checkpoint),
        "data": str(folder / "forget.npz"),
        "token_budget": 200,
        "runtime": {"device": "cpu"},
        "output": str(folder / "out"),
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return folder


def _not_a_number(source, folder):
    """A copy of a checkpoint that computes nothing but NaN."""
    from safetensors.numpy import load_file, save_file

    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.nan)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def runs(inference, tmp_path_factory):
    """By name, the folder of each run of the program, and its error message."""
    folder, checkpoint = tmp_path_factory.mktemp("reference"), inference[0] / cases.MODELS[0]
    folders = [
        _prepare(folder / "good", checkpoint, [(prompt + target, len(prompt)) for prompt, target in cases.requests()]),
        _prepare(folder / "long", checkpoint, [([5, 6], 1), ([5] * 66, 3)]),  # whose last token is not read
        _prepare(folder / "nan", _not_a_number(checkpoint, folder / "broken"), [([5, 6], 1)]),
    ]
    (messages,) = run_ranks(_run_each, 1, folders)
    return {path.name: (path, message) for path, message in zip(folders, messages, strict=True)}


@pytest.fixture
def made(runs, inference):
    """The file, the sequences and the fingerprint of the good run."""
    folder, message = runs["good"]
    assert message is None
    sequences = Sequences.load(folder / "forget.npz")
    return folder / "out" / "reference.npz", sequences, model_fingerprint(inference[0] / cases.MODELS[0])


@pytest.mark.slow
def test_log_probabilities_are_those_of_transformers(made, inference):
    path, sequences, fingerprint = made
    log_probs = load_reference(path, sequences, fingerprint)
    assert log_probs.dtype == np.float64
    assert log_probs == pytest.approx(inference[1][cases.MODELS[0]]["log_probs"], rel=0, abs=1e-4)
    with np.load(path, allow_pickle=False) as file:
        assert file["tokens"].tolist() == sequences.label_counts.tolist()


def test_the_summary_says_where_the_time_went(made):
    path, sequences, _ = made
    summary = json.loads((path.parent / "summary.json").read_text())
    assert summary["sequences"] == len(sequences)
    assert summary["tokens"] == sequences.label_counts.sum()
    assert summary["flags"] == []
    assert summary["startup_seconds"] > 0 and summary["work_seconds"] > 0 and summary["write_seconds"] >= 0
    assert sorted(file.name for file in path.parent.iterdir()) == ["reference.npz", "summary.json"]


def test_a_file_of_other_data_is_refused_with_both_hashes(made):
    path, sequences, fingerprint = made
    other = Sequences.pack([([1, 2, 3], 1)])
    with pytest.raises(ValueError, match=f"data_sha256 is {sequences.sha256()}, but this run's is {other.sha256()}"):
        load_reference(path, other, fingerprint)


def test_a_file_of_another_model_is_refused_with_both_hashes(made, inference):
    path, sequences, fingerprint = made
    other = model_fingerprint(inference[0] / cases.MODELS[1])
    with pytest.raises(ValueError, match=f"model_fingerprint is {fingerprint}, but this run's is {other}"):
        load_reference(path, sequences, other)


def test_a_sequence_that_is_too_long_is_named_with_its_file_and_nothing_is_written(runs):
    folder, message = runs["long"]
    assert message == f"{folder / 'forget.npz'}: request 1: 65 tokens, the model's context is 64"
    assert not (folder / "out").exists()


def test_a_log_probability_that_is_not_a_number_is_refused(runs):
    folder, message = runs["nan"]
    assert message == f"{folder.parent / 'broken'}: sequence 0 has log-probability nan"
    assert not (folder / "out").exists()
