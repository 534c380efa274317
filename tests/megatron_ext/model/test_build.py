import dataclasses
import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from megatron_ext.checkpoint import reading, writing
from megatron_ext.config import Layout
from megatron_ext.model import adapting, attention, layers
from megatron_ext.model import build as factory
from megatron_ext.model.families import family_of
from tests.support import tiny

MODELS = ["llama3-tied", "qwen2-untied", "qwen3-untied", "gemma2-tied", "gemma3-tied", "phi4mini-untied"]
MODELS += ["gptoss-untied", "deepseek-untied"]  # with experts
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 517,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}


MIXED = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {"kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 4}
LATENT |= {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.write(folder, MODELS)
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "num_local_experts: None; allowed: a whole number from 1"),
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 5}, "from 1 to 4"),
        ({"architectures": ["Qwen3MoeForCausalLM"], **MOE, "mlp_only_layers": [0]}, "layers without experts"),
        ({"architectures": ["MixtralForCausalLM"], **MIXED}, "lacks ['rope_theta']"),
        ({"architectures": ["GptOssForCausalLM"], **MIXED}, "lacks ['rope_theta']"),
        ({"architectures": ["GptOssForCausalLM"], **MIXED, "rope_theta": 1e4}, "lacks ['rope_scaling'] with a 'rope_t"),
        (
            {"architectures": ["GptOssForCausalLM"], **MIXED, "rope_theta": 1e4, "rope_scaling": None},
            "lacks ['rope_scaling'] with a 'rope_type'",
        ),
        (
            {"architectures": ["GptOssForCausalLM"], **MIXED, "rope_theta": 1e4, "attention_bias": False}
            | {"rope_scaling": {"rope_type": "default"}},
            "attention_bias",
        ),
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "experts that are chosen in groups"),
        ({"architectures": ["DeepseekV2ForCausalLM"], **LATENT}, "q_lora_rank: missing; low-rank queries"),
        ({"architectures": ["DeepseekV2ForCausalLM"], **LATENT, "q_lora_rank": 8}, "q_lora_rank: 8; low-rank"),
        (
            {"architectures": ["DeepseekV2ForCausalLM"], **LATENT, "q_lora_rank": None}
            | {"topk_method": "group_limited_greedy"},
            "topk_method: 'group_limited_greedy'; experts chosen in groups",
        ),
        ({"architectures": ["DeepseekV2ForCausalLM"], **LATENT, "kv_lora_rank": 0}, "kv_lora_rank: 0; allowed"),
        (
            {"architectures": ["DeepseekV2ForCausalLM"], **LATENT, "q_lora_rank": None}
            | {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 8, "beta_fast": 0}},
            "beta_fast: 0",
        ),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "images"),
        ({"architectures": ["Gemma2ForCausalLM"], "hidden_activation": "gelu"}, "hidden_activation: 'gelu'"),
        ({"architectures": ["Gemma2ForCausalLM"], "attention_bias": True}, "attention_bias: True"),
        ({"architectures": ["Gemma2ForCausalLM"], "layer_types": ["sliding_attention"]}, "layer_types: "),
        ({"architectures": ["Gemma2ForCausalLM"], "sliding_window_pattern": 0}, "sliding_window_pattern: 0"),
        ({"architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 0}, "attn_logit_softcapping: 0"),
        ({"architectures": ["Gemma3ForCausalLM"]}, "lacks ['rope_theta']"),
        ({"architectures": ["Gemma3ForCausalLM"], "rope_theta": 1e6, "use_bidirectional_attention": True}, "use_bidi"),
        ({"architectures": ["LlamaForCausalLM"], "rope_scaling": {"type": "longrope"}}, "rope scaling 'longrope'"),
        ({"architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": "yarn"}}, "rope scaling 'yarn'"),
        (
            {"architectures": ["Phi3ForCausalLM"]}
            | {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "short_factor: [1.0]; allowed: a list of 8 numbers",
        ),
        ({"architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.2}, "partial_rotary_factor: leaves 3"),
    ],
)
def test_what_a_family_lacks_is_named(changes, expected):
    with pytest.raises(ValueError) as error:
        family_of({**CONFIG, **changes})
    assert expected in str(error.value)


def test_configs_as_the_hub_has_them():
    """What Gemma's and Phi's published files leave out, and write under keys of transformers before version 5."""
    gemma = {**CONFIG, "architectures": ["Gemma3ForCausalLM"], "rope_theta": 1e6, "num_hidden_layers": 7}
    family = family_of({**gemma, "sliding_window": 512, "sliding_window_pattern": 3, "rope_local_base_freq": 9e3})
    assert family.is_tied(gemma) and not family.is_tied({**gemma, "tie_word_embeddings": False})
    kind = family.attention({**gemma, "sliding_window": 512, "sliding_window_pattern": 3, "rope_local_base_freq": 9e3})
    assert kind.windows == (512, 512, None, 512, 512, None, 512) and kind.local_theta == 9e3 and kind.scale == 1 / 16
    gemma2 = {**gemma, "architectures": ["Gemma2ForCausalLM"]}
    assert (family_of(gemma2).attention(gemma2).cap, family_of(gemma2).logit_cap(gemma2)) == (50.0, 30.0)
    assert family_of(gemma2).attention(gemma2).windows == (4096, None) * 3 + (4096,)
    factors = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    phi = {**CONFIG, "architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": "longrope", **factors}}
    phi |= {"partial_rotary_factor": 0.75, "original_max_position_embeddings": 16}
    assert family_of(phi).context(phi) == 16 and family_of(phi).rotary_size(phi) == 12
    assert family_of(phi).rotary_gain(phi) == pytest.approx(math.sqrt(1.5))
    # Of two original lengths the config's own goes first, and transformers reads no other one of Phi.
    two = {**phi, "rope_scaling": {**phi["rope_scaling"], "original_max_position_embeddings": 32}}
    assert family_of(two).context(two) == 16 and family_of(two).rotary_gain(two) == family_of(phi).rotary_gain(phi)
    del two["original_max_position_embeddings"]
    two["max_position_embeddings"] = 8192
    assert family_of(two).context(two) == 4096
    assert family_of(phi).context({**phi, "rope_scaling": None, "sliding_window": 48}) == 48


def test_transformer_engine_is_refused_where_its_layers_lack_something(alone):
    gemma = {**CONFIG, "architectures": ["Gemma2ForCausalLM"]}
    with pytest.raises(ValueError, match=r"kernels: 'te' lacks attention with windows"):
        factory.build(gemma, dataclasses.replace(alone, kernels="te"))


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
        out = attention.attend(query, key, value, given, None)
        k, v = (t.double().repeat_interleave(heads // groups, dim=2) for t in (key, value))
        scores = torch.einsum("qbhd,kbhd->bhqk", query.double(), k) / math.sqrt(size)
        shares = scores.masked_fill(mask, -math.inf).softmax(dim=-1)
        expected = torch.einsum("bhqk,kbhd->qbhd", shares, v).reshape(length, batch, -1)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0)


@pytest.mark.parametrize("queries", [1, 6])
def test_capped_attention_within_a_window(queries):
    """Against the textbook formula: the last queries of six positions, with and without a mask that hides padding."""
    keys, batch, heads, groups, size, window, cap = 6, 2, 4, 2, 8, 3, 0.7
    query = torch.randn(queries, batch, heads, size)
    key, value = (torch.randn(keys, batch, groups, size) for _ in range(2))
    k, v = (x.repeat_interleave(heads // groups, dim=2) for x in (key, value))
    scores = cap * torch.tanh(torch.einsum("qbhd,kbhd->bhqk", query, k) * 0.3 / cap)
    distance = torch.arange(keys - queries, keys).unsqueeze(1) - torch.arange(keys)
    causal = (distance < 0).expand(batch, 1, queries, keys).clone()
    padded = causal.clone()
    padded[1, :, distance[:, 0] > 0, 0] = True
    for given, mask in ((None, causal), (padded, padded)):
        for kept in (window, keys):
            shares = scores.masked_fill(mask | (distance >= kept), -math.inf).softmax(dim=-1)
            expected = torch.einsum("bhqk,kbhd->qbhd", shares, v).reshape(queries, batch, -1)
            limited = attention.within_window(given, queries, keys, kept, query.device)
            out = attention.attend_openly(query, key, value, limited, 0.3, cap)
            torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


def test_one_query_attends_to_all_keys():
    """As in decoding with a cache: no mask, and no causal order to take from the position in the query."""
    query, key, value = torch.randn(1, 1, 2, 4), torch.randn(5, 1, 2, 4), torch.randn(5, 1, 2, 4)
    q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
    expected = scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).reshape(1, 1, 8)
    torch.testing.assert_close(attention.attend(query, key, value, None, None), expected)


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
        expected = attention._attend(q, k, v, allowed, scale)
        torch.testing.assert_close(attention.attend_once(q, k, v, allowed, scale), expected)


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
    assert adapting.rotary_frequencies(settings, 16).equal(expected)


def test_rope_scaling_as_written_before_transformers_5():
    new = tiny.FAMILIES["llama3"][1]["rope_parameters"]
    old = {key: value for key, value in new.items() if key != "rope_theta"}
    frequencies = adapting.rotary_frequencies({**CONFIG, "rope_parameters": new}, 16)
    assert not frequencies.equal(adapting.rotary_frequencies({**CONFIG, "rope_theta": new["rope_theta"]}, 16))
    settings = {**CONFIG, "rope_theta": new["rope_theta"], "rope_scaling": old}
    assert adapting.rotary_frequencies(settings, 16).equal(frequencies)
    settings["rope_scaling"] = {**old, "type": old["rope_type"]}
    del settings["rope_scaling"]["rope_type"]
    assert adapting.rotary_frequencies(settings, 16).equal(frequencies)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_has_the_type_of_the_ranks(alone, dtype):
    model = factory.build(CONFIG, dataclasses.replace(alone, dtype=dtype))
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert model.rotary_pos_emb.inv_freq.dtype == torch.float32


def test_sharded_parameters_are_marked(alone, models):
    marked = set()
    for config in (CONFIG, *(reading.read_config(models / "fp32" / name) for name in MODELS[-2:])):
        model = factory.build(config, alone)
        found = [name for name, value in model.named_parameters() if getattr(value, "tensor_model_parallel", False)]
        assert not any(name.endswith(factory.WHOLE) for name in found)
        marked |= {name.split(".")[-2] for name in found}
    assert marked == set(factory.SHARDED)


@pytest.mark.parametrize("name", MODELS[:-2])  # which expert is chosen hangs on rounding
def test_bf16_is_as_close_to_fp32_as_that_of_transformers(alone, models, name):
    from transformers import AutoModelForCausalLM

    folder, ids = models / "bf16" / name, tiny.token_ids()
    with torch.no_grad():
        exact, theirs = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")(ids).logits
            for dtype in (torch.float32, torch.bfloat16)
        )
    half = dataclasses.replace(alone, dtype=torch.bfloat16)
    ours = tiny.logits(reading.load(folder, half), half, ids)
    error, bound = ((given.float() - exact).square().mean().sqrt() for given in (ours, theirs))
    assert ours.dtype == torch.bfloat16
    assert error < 1.1 * bound


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_transformers(alone, models, name, tmp_path):
    """Compared as Hugging Face tensors: the gradients are written as if they were weights."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder, ids = models / "fp32" / name, tiny.token_ids()
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    theirs(ids, labels=ids).loss.backward()
    ours = reading.load(folder, alone)
    hidden = ours(ids, torch.arange(tiny.LENGTH).expand(2, -1), None)
    logits = ours.logits(hidden[:-1].transpose(0, 1).reshape(-1, 64))
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1)).backward()
    for value in ours.parameters():
        value.data = value.grad
    writing.save(ours, alone, tmp_path / "gradients")
    given = load_file(tmp_path / "gradients" / "model.safetensors")
    if name.startswith("deepseek"):  # transformers holds its experts in one tensor each, and stores them apart
        for layer in (1, 2):
            experts = [f"model.layers.{layer}.mlp.experts.{i}." for i in range(4)]
            both = [torch.cat([given[f"{e}{x}_proj.weight"] for x in ("gate", "up")]) for e in experts]
            given[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.stack(both)
            down = torch.stack([given[f"{e}down_proj.weight"] for e in experts])
            given[f"model.layers.{layer}.mlp.experts.down_proj"] = down
    for key, value in theirs.named_parameters():
        torch.testing.assert_close(
            given[key], value.grad, atol=1e-6, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_a_window_that_a_config_does_not_name() -> None:
    """Only this leaves it out: the context is that of transformers' own default for the family, null has none."""
    config = {**CONFIG, "max_position_embeddings": 32768, "rope_theta": 1e6}
    qwen = {**config, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}
    mistral = {**config, "architectures": ["MistralForCausalLM"]}
    mixtral = {**config, **MIXED, "architectures": ["MixtralForCausalLM"]}
    found = [qwen, mistral, mixtral, {**mistral, "sliding_window": None}, {**qwen, "use_sliding_window": False}]
    assert [family_of(one).context(one) for one in found] == [4096, 4096, 32768, 32768, 32768]
