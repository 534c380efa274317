import dataclasses
import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from megatron_ext.checkpoint import reading, writing
from megatron_ext.config import Layout
from megatron_ext.model import build as factory
from megatron_ext.model import layers
from tests.support import tiny

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 517,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.write(folder, ["llama3-tied", "qwen2-untied", "qwen3-untied"])
    return folder


def test_padded_vocabulary():
    assert [factory.padded_vocabulary(517, ranks) for ranks in (1, 2, 4, 8)] == [517, 518, 520, 520]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_is_softmax_of_scaled_products(groups, dtype):
    """Against the textbook formula in fp64, causal, and with a mask that also hides padding on the left."""
    length, batch, heads, size = 6, 2, 4, 8
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(length, batch, heads, size, generator=generator).to(dtype)
    key, value = (torch.randn(length, batch, groups, size, generator=generator).to(dtype) for _ in range(2))
    causal = torch.ones(length, length, dtype=torch.bool).triu(1)
    padded = causal.expand(batch, 1, -1, -1).clone()
    padded[1, :, 1:, 0] = True
    for given, mask in ((None, causal.expand(batch, 1, -1, -1)), (padded, padded)):
        out = layers.attend(query, key, value, given, None)
        k, v = (t.double().repeat_interleave(heads // groups, dim=2) for t in (key, value))
        scores = torch.einsum("qbhd,kbhd->bhqk", query.double(), k) / math.sqrt(size)
        shares = scores.masked_fill(mask, -math.inf).softmax(dim=-1)
        expected = torch.einsum("bhqk,kbhd->qbhd", shares, v).reshape(length, batch, -1)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0)


def test_one_query_attends_to_all_keys():
    """As in decoding with a cache: no mask, and no causal order to take from the position in the query."""
    query, key, value = torch.randn(1, 1, 2, 4), torch.randn(5, 1, 2, 4), torch.randn(5, 1, 2, 4)
    q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
    expected = scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).reshape(1, 1, 8)
    torch.testing.assert_close(layers.attend(query, key, value, None, None), expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_heads_as_positions_of_one_query_attend_alike(groups, masked):
    """What decoding on a GPU computes, here on the CPU, where ``attend`` takes the plain way."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(3, 4, 1, 8, generator=generator)
    k, v = (torch.randn(3, groups, 7, 8, generator=generator) for _ in range(2))
    allowed = None
    if masked:
        allowed = torch.ones(3, 1, 1, 7, dtype=torch.bool)
        allowed[1, :, :, :5] = False
    for scale in (None, 0.7):
        expected = layers._attend(q, k, v, allowed, scale)
        torch.testing.assert_close(layers.attend_once(q, k, v, allowed, scale), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_is_that_of_transformers(dtype):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    config = factory.transformer_config(CONFIG, Layout(), dtype)
    ours, theirs = layers.Norm(config, 64, eps=1e-5), LlamaRMSNorm(64, eps=1e-5).to(dtype)
    with torch.no_grad():
        theirs.weight.normal_(1.0, 0.2)
        ours.weight.copy_(theirs.weight)
        x = torch.randn(3, 5, 64).to(dtype)
        first, second = ours(x), theirs(x)
    assert first.dtype == second.dtype == dtype
    # transformers rounds to bf16 once more, before the weight: at most one unit in the last place of either product.
    torch.testing.assert_close(first, second, rtol=1e-6 if dtype == torch.float32 else 2**-7, atol=1e-6)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        tiny.FAMILIES["llama3"][1]["rope_parameters"],
    ],
)
def test_rotary_frequencies_are_those_of_transformers(rope):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    settings = {**CONFIG, "rope_parameters": rope}
    expected = LlamaRotaryEmbedding(LlamaConfig(**settings)).inv_freq
    assert factory.rotary_frequencies(settings, 16).equal(expected)


def test_rope_scaling_as_written_before_transformers_5():
    new = tiny.FAMILIES["llama3"][1]["rope_parameters"]
    old = {key: value for key, value in new.items() if key != "rope_theta"}
    frequencies = factory.rotary_frequencies({**CONFIG, "rope_parameters": new}, 16)
    assert not frequencies.equal(factory.rotary_frequencies({**CONFIG, "rope_theta": new["rope_theta"]}, 16))
    settings = {**CONFIG, "rope_theta": new["rope_theta"], "rope_scaling": old}
    assert factory.rotary_frequencies(settings, 16).equal(frequencies)
    settings["rope_scaling"] = {**old, "type": old["rope_type"]}
    del settings["rope_scaling"]["rope_type"]
    assert factory.rotary_frequencies(settings, 16).equal(frequencies)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_has_the_type_of_the_ranks(alone, dtype):
    model = factory.build(CONFIG, dataclasses.replace(alone, dtype=dtype))
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert model.rotary_pos_emb.inv_freq.dtype == torch.float32


def test_sharded_parameters_are_marked(alone):
    model = factory.build(CONFIG, alone)
    found = [name for name, value in model.named_parameters() if getattr(value, "tensor_model_parallel", False)]
    marked = {name.split(".")[-2] for name in found}
    assert marked == set(factory.SHARDED)


@pytest.mark.parametrize("name", ["llama3-tied", "qwen2-untied", "qwen3-untied"])
def test_bf16_is_as_close_to_fp32_as_that_of_transformers(alone, models, name):
    from transformers import AutoModelForCausalLM

    folder, ids = models / "bf16" / name, tiny.token_ids()
    with torch.no_grad():
        exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(ids).logits
    half = dataclasses.replace(alone, dtype=torch.bfloat16)
    ours = tiny.logits(reading.load(folder, half), half, ids)
    error, bound = ((given.float() - exact).square().mean().sqrt() for given in (ours, theirs))
    assert ours.dtype == torch.bfloat16
    assert error < 1.1 * bound


@pytest.mark.parametrize("name", ["llama3-tied", "qwen2-untied", "qwen3-untied"])
def test_gradients_are_those_of_transformers(alone, models, name, tmp_path):
    """Compared as Hugging Face tensors: the gradients are written as if they were weights."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder, ids = models / "fp32" / name, tiny.token_ids()
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    theirs(ids, labels=ids).loss.backward()
    ours = reading.load(folder, alone)
    hidden = ours(ids, torch.arange(tiny.LENGTH).expand(2, -1), None)
    logits = ours.logits(hidden[:-1].transpose(0, 1).reshape(-1, 64))
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1)).backward()
    for value in ours.parameters():
        value.data = value.grad
    writing.save(ours, alone, tmp_path / "gradients")
    given = load_file(tmp_path / "gradients" / "model.safetensors")
    for key, value in theirs.named_parameters():
        torch.testing.assert_close(
            given[key], value.grad, atol=1e-6, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
