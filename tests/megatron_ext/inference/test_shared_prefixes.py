import random
from types import SimpleNamespace

import pytest
import torch

from megatron_ext.config import Layout
from megatron_ext.inference import shared_prefixes
from megatron_ext.model.packing import Part

CPU = torch.device("cpu")


def _ranks(**layout):
    return SimpleNamespace(layout=Layout(**layout))


def _texts(seed):
    """Texts of which many begin as another does, or as a part of it."""
    draw = random.Random(seed)
    texts = {tuple(draw.choices(range(3), k=draw.randint(1, 12))) for _ in range(40)}
    return [*texts, *((*text, 7, 8) for text in list(texts)[:10])]


def test_batches_hold_every_text_once_within_the_budget():
    texts = _texts(0)
    batches = shared_prefixes.plan(texts, 20, _ranks())
    assert sorted(text for batch in batches for text in batch) == sorted(texts)
    assert max(shared_prefixes.packed(batch, 100, CPU)[0].numel() for batch in batches) <= 20
    assert shared_prefixes.plan([], 20, _ranks()) == []
    assert shared_prefixes.plan([(5,) * 30, (5,) * 29 + (6,)], 20, _ranks()) == [[(5,) * 30], [(5,) * 29 + (6,)]]


def test_batches_are_small_enough_for_every_replica_and_stage_to_have_one():
    texts = [(i, 0, 0, 0) for i in range(10)]
    assert [len(b) for b in shared_prefixes.plan(texts, 1000, _ranks())] == [10]
    assert [len(b) for b in shared_prefixes.plan(texts, 1000, _ranks(data=2))] == [5, 5]
    assert [len(b) for b in shared_prefixes.plan(texts, 1000, _ranks(data=2, pipeline=2))] == [2, 2, 2, 2, 2]


def test_a_beginning_is_shared_where_it_is_a_part_of_the_text_that_matters():
    assert shared_prefixes.shared((1, 2, 3, 4), (1, 2, 3, 5, 6)) == 3
    assert shared_prefixes.shared((), (1, 2)) == 0
    assert shared_prefixes.shared((1, 9), (1, *[2] * 7)) == 1
    assert shared_prefixes.shared((1, 9), (1, *[2] * 8)) == 0


@pytest.mark.parametrize("key_budget", [1, 30, 10_000])
def test_every_token_stands_in_one_part_and_sees_its_text_up_to_itself(key_budget):
    batch = sorted(_texts(1))
    ids_1T, packing, stretches = shared_prefixes.packed(batch, key_budget, CPU)
    ids_T = ids_1T[0]
    for text, stretch in zip(batch, stretches, strict=True):
        assert ids_T[stretch.path].tolist() == list(text)
        assert packing.positions_T[stretch.path].tolist() == list(range(len(text)))
    assert len(ids_T) < sum(map(len, batch))
    queries = torch.cat([part.queries_RQ.flatten() for part in packing.parts])
    assert queries[packing.order_T].tolist() == list(range(len(ids_T)))
    seen, end = {}, 0
    for part in packing.parts:
        rows, width = part.queries_RQ.shape
        assert rows == 1 or part.keys_RK.numel() <= key_budget
        forbidden = part.forbidden(None)
        if forbidden is None:
            forbidden = torch.ones(width, width, dtype=torch.bool).triu(1).expand(rows, 1, -1, -1)
        for place, hidden in enumerate(forbidden[:, 0].flatten(0, 1)):
            seen[end + place] = ids_T[part.keys_RK[place // width][~hidden]].tolist()
        end += rows * width
    for text, stretch in zip(batch, stretches, strict=True):
        for position, token in enumerate(stretch.path):
            assert seen[int(packing.order_T[token])] == list(text[: position + 1])


def test_a_window_hides_what_is_older():
    causal = Part(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64), None)
    assert causal.forbidden(4) is None
    assert (~causal.forbidden(2)[0, 0]).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    later = Part(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[2, 0]]))
    assert (~later.forbidden(2)[0, 0]).int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
