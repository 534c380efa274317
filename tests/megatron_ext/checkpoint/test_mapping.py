import pytest
import torch

from megatron_ext.checkpoint import mapping, splits
from megatron_ext.config import Layout

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 7,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-6,
    "model_type": "llama",
}


def _local(entry, shape, rank, size):
    """The rank's parameter of ``shape`` when element i of each Hugging Face tensor has value i, +1000 a tensor."""
    local = torch.full(shape, -1)
    for number, part in enumerate(entry.parts(rank, size)):
        full = entry.shapes[part.name]
        values = torch.arange(torch.Size(full).numel()).view(full) + 1000 * number
        place = part.place(local)
        place.copy_(values[part.index].reshape(place.shape))
    return local


def test_query_groups_are_interleaved():
    shapes = {"q": (8, 1), "k": (4, 1), "v": (4, 1)}  # 4 heads of size 2, 2 groups
    entry = mapping.Entry(("qkv",), splits.grouped(2), shapes)
    whole = _local(entry, (16, 1), 0, 1).flatten().tolist()
    assert whole == [0, 1, 2, 3, 1000, 1001, 2000, 2001, 4, 5, 6, 7, 1002, 1003, 2002, 2003]
    halves = [_local(entry, (8, 1), rank, 2).flatten().tolist() for rank in (0, 1)]
    assert halves[0] + halves[1] == whole


def test_gate_and_up_lie_one_after_the_other_on_each_rank():
    entry = mapping.Entry(("fc1",), splits.column, {"gate": (4, 1), "up": (4, 1)})
    assert _local(entry, (4, 1), 0, 2).flatten().tolist() == [0, 1, 1000, 1001]
    assert _local(entry, (4, 1), 1, 2).flatten().tolist() == [2, 3, 1002, 1003]


def test_rows_of_the_input_dimension():
    entry = mapping.Entry(("proj",), splits.row, {"o": (2, 4)})
    assert _local(entry, (2, 2), 1, 2).tolist() == [[2, 3], [6, 7]]


@pytest.mark.parametrize(("rank", "expected"), [(0, [0, 1]), (1, [2, 3]), (2, [4, -1]), (3, [-1, -1])])
def test_vocabulary_padding_belongs_to_no_tensor(rank, expected):
    entry = mapping.Entry(("embedding",), splits.vocabulary, {"embed": (5, 1)})
    assert _local(entry, (2, 1), rank, 4).flatten().tolist() == expected


def test_stages_have_the_layers_of_the_split():
    layout = Layout(pipeline=2)
    first, last = (mapping.entries(CONFIG, layout, stage) for stage in (0, 1))
    names = {name for entry in last for name in entry.shapes}
    assert "model.layers.2.mlp.down_proj.weight" in names
    assert not any(name.startswith(("model.layers.0.", "model.layers.1.", "model.embed")) for name in names)
    assert any("decoder.layers.0.mlp.linear_fc2.weight" in entry.names for entry in last)
    both = [name for entry in (*first, *last) for name in entry.shapes]
    assert both == list(mapping.tensor_shapes(CONFIG))


def test_a_tied_output_is_a_copy_that_only_the_last_of_several_stages_has():
    tied = {**CONFIG, "tie_word_embeddings": True}
    assert "lm_head.weight" not in mapping.tensor_shapes(tied)
    assert "lm_head.weight" in mapping.tensor_shapes(CONFIG)
    (copy,) = [entry for entry in mapping.entries(tied, Layout(pipeline=2), 1) if not entry.stored]
    assert dict(copy.shapes) == {"model.embed_tokens.weight": (7, 8)}
    assert all(entry.stored for entry in mapping.entries(tied, Layout(), 0))


def test_both_layer_specs_are_known():
    local, fused = torch.ones(1), torch.zeros(1)
    (norm,) = [
        entry
        for entry in mapping.entries(CONFIG, Layout(), 0)
        if "model.layers.1.input_layernorm.weight" in entry.shapes
    ]
    assert norm.find({"decoder.layers.1.input_layernorm.weight": local}) is local
    assert norm.find({"decoder.layers.1.self_attention.linear_qkv.layer_norm_weight": fused}) is fused
    with pytest.raises(KeyError, match=r"decoder.layers.1.input_layernorm.weight or decoder.layers.1.self_attention"):
        norm.find({})
