"""``unlearn sign`` and ``unlearn verify``: what was signed is told from what was changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.__main__ import main

pytest.importorskip("model_signing", reason="the extra 'sign' is not installed")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    return str(tmp_path / "key.pem"), str(tmp_path / "key.pub")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of an experiment as far as they are signed."""
    checkpoint = tmp_path / "results" / "unlearned" / "npo" / "seed-0" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "README.md").write_text("card")
    (checkpoint / ".snakemake_timestamp").touch()
    report = tmp_path / "results" / "report"
    report.mkdir()
    digest = hashlib.sha256(b"weights").hexdigest()
    model = {"model": "npo-seed-0", "files_sha256": {"model.safetensors": digest}}
    (report / "evidence.json").write_text(json.dumps({"models": [model]}))
    return tmp_path / "results"


def test_a_changed_byte_is_found(results: Path, keys: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Only this signs: weights, card and evidence are each told from a copy with one byte changed, and put back."""
    private, public = keys
    assert main(["sign", str(results), "--key", private]) == 0
    assert main(["verify", str(results), "--key", public]) == 0
    for file in (*(results / "unlearned").rglob("*.*"), results / "report" / "evidence.json"):
        if not file.is_file() or file.name.startswith("."):
            continue
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + (b" " if file.suffix == ".json" else b"x") + whole[-1:])
        capsys.readouterr()
        assert main(["verify", str(results), "--key", public]) == 1, file
        assert f"{file.parent}: changed since it was signed: {file.name}\n" in capsys.readouterr().err
        file.write_bytes(whole)
    checkpoint = results / "unlearned" / "npo" / "seed-0" / "checkpoint"
    (checkpoint / ".snakemake_timestamp").unlink()  # as in a copy that is handed on
    assert main(["verify", str(results), "--key", public]) == 0
    (checkpoint / "more.txt").write_text("a file more")
    assert main(["verify", str(results), "--key", public]) == 1
    assert f"{checkpoint}: extra files: " in (said := capsys.readouterr().err) and "more.txt" in said


def test_another_key_and_weights_of_another_run_are_refused(results: Path, keys: tuple[str, str], capsys) -> None:
    """Only this verifies what was never signed, and signs what evidence is not about."""
    private, public = keys
    assert main(["verify", str(results), "--key", public]) == 1
    assert "npo-seed-0.sig is missing" in capsys.readouterr().err
    assert main(["sign", str(results), "--key", public]) == 2
    assert "--key" in capsys.readouterr().err
    weights = results / "unlearned" / "npo" / "seed-0" / "checkpoint" / "model.safetensors"
    weights.write_bytes(b"others")
    assert main(["sign", str(results), "--key", private]) == 2
    assert str(weights) in capsys.readouterr().err and not (results / "signatures").exists()
    (results / "report" / "evidence.json").unlink()
    assert main(["sign", str(results), "--key", private]) == 2
    assert "evidence.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ({}, "models: expected a list, got null"),
        ({"models": {"model": "a"}}, "models: expected a list, got "),
        ({"models": ["npo-seed-0"]}, "models[0]: expected an object whose 'model' is a text"),
        ({"models": [{"model": ["x"]}]}, "models[0]: expected an object whose 'model' is a text"),
        ({"models": [{"model": "npo-seed-0", "files_sha256": ["x"]}]}, "models[0].files_sha256: expected a SHA-256"),
        ({"models": [{"model": "npo-seed-0", "files_sha256": {"x": 3}}]}, "models[0].files_sha256: expected a SHA-256"),
        ({"models": [{"model": "npo-seed-0", "files_sha256": {"../x": "3"}}]}, "is no file in a checkpoint"),
    ],
)
def test_evidence_of_another_form_cannot_be_checked(
    evidence: object, expected: str, results: Path, keys: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is something else than a byte that has changed: results may come from others."""
    (results / "report" / "evidence.json").write_text(json.dumps(evidence))
    for command, key in zip(("sign", "verify"), keys, strict=True):
        assert main([command, str(results), "--key", key]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"{results / 'report' / 'evidence.json'}: ") and expected in said


def test_a_checkpoint_that_was_removed_as_the_experiment_says_is_not_looked_for(
    results: Path, keys: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Evidence still names its files."""
    for file in (results / "unlearned").rglob("*.*"):
        file.unlink()
    (results / "kept" / "npo-seed-0").mkdir(parents=True)
    (results / "kept" / "npo-seed-0" / "ready.json").write_text("{}")
    private, public = keys
    assert main(["sign", str(results), "--key", private]) == 0
    assert main(["verify", str(results), "--key", public]) == 0


def test_a_file_that_cannot_be_read_has_not_changed(
    results: Path, keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pipeline.data.cache.sha256", refuse)
    assert main(["verify", str(results), "--key", keys[1]]) == 2
    assert "Permission denied" in capsys.readouterr().err
