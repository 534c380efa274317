"""Rounding to few bits: every scheme against its formula, and what becomes of a checkpoint's files."""

import json
import math
import os
import sys
import types

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from megatron_ext.config.quantisation import Quantisation
from megatron_ext.specs import QuantiseSpec
from megatron_ext.steps import quantise

SCHEMES = ("int8", "int4", "fp4", "nf4")
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture
def matrix():
    """fp32 ``[10, 150]``: groups of 64 end neither with rows nor with the matrix."""
    values = 0.05 * torch.randn(10, 150, generator=torch.Generator().manual_seed(3))
    values[4] = 0.0
    return values


def rounded(matrix, scheme, group=None):
    return quantise.rounded(matrix, Quantisation(scheme=scheme, group=group, backend="builtin"))


def nearest(value, table):
    return min(table, key=lambda entry: abs(entry - value))


def by_hand(values, scheme):
    """A group's weights, one by one, in Python's arithmetic."""
    most = max(abs(value) for value in values)
    if most == 0:
        return [0.0] * len(values)
    if scheme in ("int8", "int4"):
        largest = {"int8": 127, "int4": 7}[scheme]
        return [round(value * largest / most) * most / largest for value in values]
    # NF4: QLoRA (arXiv 2305.14314), appendix E. FP4: a sign, two bits of exponent, one of mantissa; the largest is 1.
    nf4 = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0]
    nf4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    fp4 = [sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 2, 3, 4, 6, 8, 12)]
    return [nearest(value / most, {"nf4": nf4, "fp4": fp4}[scheme]) * most for value in values]


@pytest.mark.parametrize(("scheme", "group"), [("int8", None), *((s, g) for s in SCHEMES[1:] for g in (None, 32))])
def test_a_scheme_is_its_formula(matrix, scheme, group):
    size, rows = group or 64, matrix.tolist()
    if scheme == "int8":
        groups = rows
    elif scheme == "int4":
        groups = [row[i : i + size] for row in rows for i in range(0, len(row), size)]
    else:
        flat = [value for row in rows for value in row]
        groups = [flat[i : i + size] for i in range(0, len(flat), size)]
    expected = torch.tensor([value for values in groups for value in by_hand(values, scheme)]).view_as(matrix)
    torch.testing.assert_close(rounded(matrix, scheme, group), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES[1:])
def test_a_group_that_is_longer_than_the_weights_takes_no_more_memory_than_they_do(matrix, scheme):
    assert rounded(matrix, scheme, 10**21).equal(rounded(matrix, scheme, matrix.numel()))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_rounding_twice_is_rounding_once(matrix, scheme, dtype):
    once = rounded(matrix.to(dtype).float(), scheme).to(dtype)
    assert not once.equal(matrix.to(dtype))
    assert rounded(once.float(), scheme).to(dtype).equal(once)


def test_errors_are_bounded_and_fall_with_the_bits(matrix):
    errors = {scheme: rounded(matrix, scheme) - matrix for scheme in SCHEMES}
    most = matrix.abs().amax(dim=1, keepdim=True)
    assert (errors["int8"].abs() <= most / 127 / 2 * (1 + 1e-5)).all()
    assert (errors["int4"].abs() <= most / 7 / 2 * (1 + 1e-5)).all()
    norms = {scheme: float(error.norm()) for scheme, error in errors.items()}
    assert norms["int8"] < norms["int4"] / 5
    assert norms["nf4"] < norms["int4"] < norms["fp4"]  # of normal weights, which nf4 is made for
    finer = {scheme: float((rounded(matrix, scheme, 32) - matrix).norm()) for scheme in SCHEMES[1:]}
    assert all(finer[scheme] < norms[scheme] for scheme in finer)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_matrix_in_pieces_is_the_matrix(matrix, scheme, monkeypatch):
    whole = rounded(matrix.repeat(20, 1), scheme)
    monkeypatch.setattr(quantise, "AT_A_TIME", 150 * 64)
    assert rounded(matrix.repeat(20, 1), scheme).equal(whole)


HIDDEN, WIDTH, VOCABULARY = 32, 80, 50
BLOCK = {
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.q_proj.bias": (HIDDEN,),
    "self_attn.q_norm.weight": (8,),
    "mlp.down_proj.weight": (HIDDEN, WIDTH),
    "input_layernorm.weight": (HIDDEN,),
}
MATRICES = [f"model.layers.{i}.{name}" for i in (0, 1, 10) for name in BLOCK if name.endswith("_proj.weight")]


def write(folder, dtype, files=1):
    """A checkpoint with some of a model's tensors, in one safetensors file or several."""
    folder.mkdir(parents=True)
    shapes = {f"model.layers.{i}.{name}": shape for i in (0, 1, 10) for name, shape in BLOCK.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes[name] = (VOCABULARY, HIDDEN)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.txt").write_text("not a checkpoint's")
    names = list(tensors)
    parts = [names[i::files] for i in range(files)]
    titles = [
        f"model-{i + 1:05d}-of-{files:05d}.safetensors" if files > 1 else "model.safetensors" for i in range(files)
    ]
    for title, part in zip(titles, parts, strict=True):
        save_file({name: tensors[name] for name in part}, folder / title, metadata={"format": "pt"})
    if files > 1:
        weight_map = {name: title for title, part in zip(titles, parts, strict=True) for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


def merged(folder):
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def run(folder, checkpoint, **settings):
    """The step's program; returns its summary."""
    settings = {"backend": "builtin", **settings}
    spec = QuantiseSpec(checkpoint=checkpoint, output=folder / "out", **settings)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    quantise.main([str(folder / "spec.yaml")])
    return json.loads((folder / "out" / "summary.json").read_text())


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("files", [1, 3])
def test_a_checkpoint_keeps_everything_but_the_matrices_of_its_blocks(tmp_path, dtype, files):
    before = write(tmp_path / "base", dtype, files)
    summary = run(tmp_path, tmp_path / "base", scheme="int4", group=16)
    out = tmp_path / "out" / "checkpoint"
    after = merged(out)
    assert list(after) == list(merged(tmp_path / "base"))
    assert {name for name in after if not after[name].equal(before[name])} == set(MATRICES)
    for name in MATRICES:
        assert after[name].dtype == dtype
        assert after[name].equal(rounded(before[name].float(), "int4", 16).to(dtype)), name
    assert set(os.listdir(out)) == set(os.listdir(tmp_path / "base")) - {"notes.txt"}
    for file in sorted(out.glob("*.safetensors")):
        assert file.stat().st_size == (tmp_path / "base" / file.name).stat().st_size
    difference = math.fsum(float((after[name].double() - before[name].double()).pow(2).sum()) for name in MATRICES)
    norm = math.fsum(float(before[name].double().pow(2).sum()) for name in MATRICES)
    assert summary["relative_error"] == pytest.approx(math.sqrt(difference / norm), rel=1e-5)
    assert (summary["matrices"], summary["parameters"]) == (6, 3 * (HIDDEN * HIDDEN + HIDDEN * WIDTH))
    assert (summary["backend"], summary["bitsandbytes"]) == ("builtin", None)


def test_a_failure_leaves_the_earlier_checkpoint(tmp_path):
    write(tmp_path / "base", torch.float32)
    run(tmp_path, tmp_path / "base", scheme="int8")
    before = (tmp_path / "out" / "checkpoint" / "model.safetensors").read_bytes()
    tensors = merged(tmp_path / "base")
    tensors[MATRICES[-1]][3, 5] = math.inf
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    with pytest.raises(ValueError, match=rf"base: {MATRICES[-1]} has weights that are not finite"):
        run(tmp_path, tmp_path / "base", scheme="nf4")
    assert (tmp_path / "out" / "checkpoint" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({"model.embed_tokens.weight": torch.ones(4, 4)}, "no tensor is a decoder block's matrix"),
        (
            {MATRICES[0]: torch.ones(4, 4, dtype=torch.int8)},
            f"{MATRICES[0]} is of type I8; allowed: F64, F32, F16, BF16",
        ),
    ],
    ids=["no block", "already in integers"],
)
def test_what_has_nothing_to_round_is_refused(tmp_path, tensors, error):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    with pytest.raises(ValueError, match=error):
        run(tmp_path, tmp_path / "base", scheme="int8")
    assert not (tmp_path / "out" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"scheme": "int3"}, "'int8', 'int4', 'fp4' or 'nf4'"),
        ({"scheme": "int8", "group": 64}, "group: int8 has a scale a row, and no groups"),
        ({"scheme": "int4", "backend": "bitsandbytes"}, "backend: bitsandbytes has no scheme 'int4'"),
        ({"scheme": "fp4", "group": 48, "backend": "bitsandbytes"}, "no groups of 48; allowed: 32, 64, 128"),
        ({"scheme": "fp4", "group": 1}, "greater than or equal to 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, error):
    with pytest.raises(ValidationError, match=error):
        Quantisation(**settings)


class StandIn(types.ModuleType):
    """What is called of bitsandbytes, with the forms and conditions of its version 0.50; it notes and multiplies."""

    def __init__(self):
        super().__init__("bitsandbytes")
        self.__version__ = "0.50.2"
        self.functional = types.ModuleType("bitsandbytes.functional")
        self.calls = []
        for name in ("int8_vectorwise_quant", "int8_vectorwise_dequant", "quantize_4bit", "dequantize_4bit"):
            setattr(self.functional, name, getattr(self, name))

    def int8_vectorwise_quant(self, A, threshold=0.0):
        assert A.dtype == torch.float16 and A.ndim == 2 and threshold == 0.0
        self.calls.append("int8")
        return (2 * A).to(torch.float32), A.abs().amax(1).float(), None

    def int8_vectorwise_dequant(self, A, stats):
        assert stats.shape == A.shape[:1]
        return A

    def quantize_4bit(self, A, absmax=None, out=None, blocksize=None, compress_statistics=False, quant_type="fp4"):
        assert A.dtype in TYPES.values() and not compress_statistics
        self.calls.append((quant_type, blocksize))
        return 2 * A.view(-1, 1), A.shape

    def dequantize_4bit(self, A, quant_state=None):
        return A.view(quant_state)


@pytest.fixture
def stand_in(monkeypatch):
    module = StandIn()
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", module.functional)
    return module


@pytest.mark.parametrize(
    ("settings", "call"),
    [
        ({"scheme": "int8"}, "int8"),
        ({"scheme": "fp4"}, ("fp4", 64)),
        ({"scheme": "nf4", "group": 128}, ("nf4", 128)),
    ],
    ids=["int8", "fp4", "nf4"],
)
def test_bitsandbytes_is_called_as_it_wants_to_be(tmp_path, stand_in, settings, call):
    before = write(tmp_path / "base", torch.bfloat16)
    summary = run(tmp_path, tmp_path / "base", backend="bitsandbytes", **settings)
    assert stand_in.calls == [call] * len(MATRICES)
    assert (summary["backend"], summary["bitsandbytes"]) == ("bitsandbytes", "0.50.2")
    after = merged(tmp_path / "out" / "checkpoint")
    for name in MATRICES:
        assert after[name].equal(2 * before[name]), name


def test_whose_code_rounds(monkeypatch, stand_in):
    def chosen(**settings):
        return quantise.chosen(Quantisation(**{"scheme": "fp4", **settings}))

    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert chosen(backend="builtin") == ("builtin", None)
        assert chosen(backend="bitsandbytes") == ("bitsandbytes", "0.50.2")
        assert chosen() == (("bitsandbytes", "0.50.2") if gpu else ("builtin", None))
    assert chosen(group=48) == chosen(scheme="int4") == ("builtin", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    assert chosen() == ("builtin", None)
    with pytest.raises(ModuleNotFoundError, match="backend: 'bitsandbytes' was asked for and cannot be imported"):
        chosen(backend="bitsandbytes")


@pytest.mark.parametrize("scheme", ["int8", "fp4", "nf4"])
def test_bitsandbytes_own_numbers_are_ours(matrix, scheme):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    half = matrix.half()  # what it makes of int8 in any case
    ours, theirs = rounded(half.float(), scheme), quantise.by_bitsandbytes(half, Quantisation(scheme=scheme))
    apart = (ours - theirs).abs() > 1e-6 * matrix.abs().max()
    assert apart.float().mean() < 0.01  # ties, which its code for CPUs and that for GPUs decide otherwise
