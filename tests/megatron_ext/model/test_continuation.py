import pytest
import torch

from megatron_ext.model.cache import Cache
from megatron_ext.model.continuation import continue_rows

CPU = torch.device("cpu")


def _softmax(query, key, value, forbidden):
    """Attention of one head in plain torch, with ``attend``'s shapes."""
    products = torch.einsum("qbhd,kbhd->bhqk", query, key)
    if forbidden is not None:
        products = products.masked_fill(forbidden, float("-inf"))
    return torch.einsum("bhqk,kbhd->qbhd", products.softmax(-1), value).flatten(2)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(
    ("counts", "parts"),
    [([1, 1, 1], [(3, 1)]), ([1, 4, 1], [(3, 1), (1, 4)]), ([2, 0, 4], [(3, 4)]), ([0, 0, 1], [(3, 1)])],
)
def test_every_new_token_sees_its_row_up_to_itself(counts, parts, window):
    """Rows of other lengths, with several new tokens, one or none; a few with several are computed apart."""
    starts, tokens, draw = [5, 2, 4], sum(counts), torch.Generator().manual_seed(0)
    old = [torch.randn(2, start, 1, 1, 8, generator=draw) for start in starts]
    cache = Cache(3, 10)
    for row, (key, value) in enumerate(old):
        cache.write(1, torch.full((starts[row],), row), torch.arange(starts[row]), key, value)
    query, key, value = torch.randn(3, tokens, 1, 1, 8, generator=draw)
    reading = continue_rows(starts, counts, CPU)
    assert [tuple(part.queries_RQ.shape) for part in reading.parts] == parts
    out = reading.attend(query, *reading.with_earlier(cache, 1, key, value), window, _softmax)
    first = 0
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        keys, values = (torch.cat([o, n[first : first + count]]) for o, n in zip(old[row], (key, value), strict=True))
        for i in range(count):
            seen = slice(0 if window is None else max(0, start + i + 1 - window), start + i + 1)
            alone = _softmax(query[first + i : first + i + 1], keys[seen], values[seen], None)
            torch.testing.assert_close(out[first + i : first + i + 1], alone)
        first += count


def test_rows_at_one_place_need_no_mask():
    assert continue_rows([4, 4], [1, 1], CPU).parts[0].whole
    assert not continue_rows([4, 3], [1, 1], CPU).parts[0].whole
    assert not continue_rows([4, 4], [2, 2], CPU).parts[0].whole


@pytest.mark.parametrize(
    ("kept", "now"), [([0, 1, 2, 3], [0, 1, 2, 3]), ([0, 2, 3], [0, 3, 2]), ([1, 3], [3, 1]), ([0, 1], [0, 1])]
)
def test_rows_that_leave_take_their_keys_with_them(kept, now):
    """The last ones come into the gaps, with as many positions as are in use; the cache goes on from there."""
    cache = Cache(4, 3)
    key = torch.arange(1.0, 9.0).view(8, 1, 1, 1)
    cache.write(7, torch.arange(4).repeat_interleave(2), torch.tensor([0, 1] * 4), key, 10 * key)
    assert cache.keep_rows(kept, 2) == now
    keys, values = cache.key_value_memory_dict[7]
    rows = [[2 * row + 1, 2 * row + 2, 0] for row in now]
    assert keys.flatten(1).tolist() == rows
    assert values.flatten(1).tolist() == [[10 * number for number in row] for row in rows]
    cache.write(7, torch.tensor([len(now) - 1]), torch.tensor([2]), key[:1], key[:1])
    assert keys[-1].flatten().tolist() == [*rows[-1][:2], 1]
