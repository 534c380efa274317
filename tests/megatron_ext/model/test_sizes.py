"""The numbers of a config: one that cannot be is refused with key and value, before memory is taken for it."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from megatron_ext.checkpoint import reading
from megatron_ext.model.families import family_of, known, llama
from megatron_ext.model.families.base import Family
from megatron_ext.model.families.sizes import FLAGS, MOST, OPTIONAL
from megatron_ext.schema import BrokenFile
from pipeline.config.sizing import Shape
from tests.support.worlds import CONFIG

WRONG: list[Any] = [0, -1, -(2**63), 10**400, 32.0, 0.5, float("nan"), float("inf"), True, "32", [32], {}]
NUMBERS: list[Any] = [0, -1.0, float("nan"), float("inf"), "1e-5", None, True, 10**400]


def refused(**changes: Any) -> str:
    config = {**CONFIG, **changes}
    with pytest.raises(ValueError) as error:
        family_of(config)
    with pytest.raises(ValueError) as planned:
        Shape.of(config)
    assert str(planned.value) == str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key", MOST)
@pytest.mark.parametrize("value", WRONG, ids=lambda value: f"{value!r:.20}")
def test_a_size_is_a_whole_number_within_bounds(key: str, value: Any) -> None:
    said = refused(**{key: value})
    assert said.startswith(f"{key}: ") and f"allowed: a whole number from 1 to {MOST[key]}" in said and len(said) < 200


@pytest.mark.parametrize("key", MOST)
def test_bounds(key: str) -> None:
    assert refused(**{key: MOST[key] + 1}).startswith(f"{key}: {MOST[key] + 1}")
    if key in OPTIONAL:
        family_of({**CONFIG, key: None})
    else:
        assert refused(**{key: None}).startswith(f"{key}: None")


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "initializer_range"])
@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: f"{value!r:.20}")
def test_a_number_is_finite(key: str, value: Any) -> None:
    if (key, value) == ("initializer_range", 0):
        family_of({**CONFIG, key: value})
    else:
        assert refused(**{key: value}).startswith(f"{key}: ")


@pytest.mark.parametrize("key", FLAGS)
def test_a_flag_is_true_or_false(key: str) -> None:
    assert refused(**{key: "no"}) == f"{key}: 'no'; allowed: true, false"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide num_attention_heads, 4"),
        ({"hidden_size": 34}, "num_attention_heads: 4 does not divide hidden_size, 34"),
        ({"head_dim": 7}, "head_dim: 7; allowed: an even number"),
        ({"rope_scaling": "linear"}, "rope_scaling: 'linear'; allowed: an object"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope scaling 'linear' lacks ['factor']"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor: 0; allowed: a finite number above 0"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, "rope scaling ['linear'] is not supported"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling says rope_type 'linear', rope_parameters 'default': remove the wrong one",
        ),
        (
            {
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
                "rope_scaling": {"type": "linear", "factor": 2.0},
            },
            "rope_scaling says factor 2.0, rope_parameters 4.0",
        ),
        ({"architectures": "LlamaForCausalLM"}, "architectures: 'LlamaForCausalLM'; allowed: a list of names"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures: [['LlamaForCausalLM']]; allowed: a list of names"),
    ],
)
def test_numbers_fit_each_other(changes: dict[str, Any], expected: str) -> None:
    assert expected in refused(**changes)


OWN: dict[str, dict[str, Any]] = {
    "GptOssForCausalLM": {"num_local_experts": 2, "num_experts_per_tok": 1, "rope_scaling": {"rope_type": "default"}},
    "MixtralForCausalLM": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "Qwen3MoeForCausalLM": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
    "DeepseekV2ForCausalLM": {"kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 6}
    | {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "q_lora_rank": None},
}


@pytest.mark.parametrize("name", known())
def test_numbers_of_heads_that_transformers_has_otherwise_are_given(name: str) -> None:
    """A family's own default is in its config class; where it is what is taken here, the key may be missing."""
    config = {**CONFIG, "num_key_value_heads": 4, "head_dim": 8, "architectures": [name], **OWN.get(name, {})}
    kind = getattr(transformers, name).config_class
    sizes = {key: config[key] for key in ("hidden_size", "num_attention_heads")}
    for key in ("num_key_value_heads", "head_dim"):
        theirs = getattr(kind(**sizes, pad_token_id=0), key, None)
        less = {other: value for other, value in config.items() if other != key}
        if theirs in (None, config[key]) or (name, key) == ("DeepseekV2ForCausalLM", "head_dim"):
            family_of(less)
        else:
            with pytest.raises(ValueError, match=rf"lacks \['{key}'\]: transformers would take {theirs} for {key}"):
                family_of(less)
    family_of(config)


def test_a_default_of_transformers_that_is_also_ours_may_be_left_out() -> None:
    mistral = {**CONFIG, "architectures": ["MistralForCausalLM"], "hidden_size": 64, "num_attention_heads": 8}
    del mistral["num_key_value_heads"]
    assert family_of(mistral)
    with pytest.raises(ValueError, match=r"lacks \['num_key_value_heads'\]: transformers would take 8"):
        family_of({**mistral, "num_attention_heads": 16})


def test_two_spellings_of_one_rotary_embedding_may_agree() -> None:
    both = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}
    family_of({**CONFIG, **both, "rope_scaling": {"type": "linear", "factor": 2.0}})


def test_sizes_that_no_file_holds_take_no_memory(tmp_path: Path, alone: Any) -> None:
    """A config within all bounds, of petabytes, beside a file of a few bytes."""
    huge = {"hidden_size": 2**20, "intermediate_size": 2**24, "vocab_size": 2**24, "num_hidden_layers": 64}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **huge}))
    save_file({"model.norm.weight": torch.ones(32)}, tmp_path / "model.safetensors")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"does not fit its config: missing tensors"):
        reading.load(tmp_path, alone)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


def test_the_file_is_named(tmp_path: Path, alone: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_attention_heads": 0}))
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"config\.json: num_attention_heads: 0; allowed: "):
        reading.load(tmp_path, alone)


@pytest.mark.parametrize(
    ("base", "names", "said"),
    [
        (llama.Llama, {}, "'LlamaForCausalLM' is that of "),  # inherited, and so it would take Llama's place
        (Family, {"architectures": ("MistralForCausalLM",)}, "'MistralForCausalLM' is that of "),
        (Family, {"architectures": "OwnForCausalLM"}, "'OwnForCausalLM' is not allowed; must be a tuple of names"),
    ],
)
def test_a_family_takes_no_other_ones_architecture(
    monkeypatch: pytest.MonkeyPatch, base: type[Family], names: dict[str, Any], said: str
) -> None:
    own = type("Own", (base,), {"__module__": llama.__name__, **names})
    monkeypatch.setattr(llama, "Own", own, raising=False)
    with pytest.raises(BrokenFile, match=f"class (Own|Mistral): architectures: {said}"):
        known()
