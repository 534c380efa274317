"""A loaded model as lm-evaluation-harness sees one: its three kinds of requests, answered by an ``LM``.

Encoding, truncation and stops are those of the harness's own ``HFLM`` (lm-eval 0.4.13: ``models/huggingface.py``, and
``TemplateLM`` of ``api/model.py``), so that scores are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pipeline.data.errors import DataError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance as HarnessRequest

    from megatron_ext.inference.sampling import Sampling
    from pipeline.benchmarks.base import LM

Pair = tuple[list[int], list[int]]
MAX_NEW_TOKENS = 256  # where a task does not say: HFLM's
SAMPLING = ("temperature", "do_sample", "top_p", "top_k")


class HarnessLM(TemplateLM):
    """One logical model: every rank runs the harness with the same requests, and ``lm`` shares them among the ranks.

    To the harness it is therefore one process, rank 0 of 1, on every rank. ``cut``: (task, document) of the requests
    whose context was longer than the model reads, and of which only the end was read.
    """

    def __init__(self, lm: LM) -> None:
        super().__init__()
        self.lm = lm
        self.cut: set[tuple[str | None, int | None]] = set()

    @property
    def eot_token_id(self) -> int:
        return self.lm.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: the start token, or the end token where there is none."""
        bos = self.lm.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        return self.lm.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; by default with a start token where the tokenizer adds one and the text has none itself.

        Differs from HFLM for tokenizers that add more than a start token, an end token for example: it is left out.
        """
        if add_special_tokens is None:
            names = self.lm.tokenizer.names
            add_special_tokens = not has_bos_prefix(string, names.eos if names.bos is None else names.bos)
        return self.lm.tokenizer.encode(string, special=add_special_tokens)

    def loglikelihood(self, requests: list[HarnessRequest], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, in nats, and whether it is the greedy one."""
        return self._scores(requests, [self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: list[HarnessRequest], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text in nats, in windows of the model's context that do not overlap in what
        they predict."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            pairs += map(make_disjoint_window, windows)
            owners += [i] * (len(pairs) - len(owners))
        totals = [0.0] * len(requests)
        scores = self._scores([requests[i] for i in owners], pairs)
        for i, (log_prob, _) in zip(owners, scores, strict=True):
            totals[i] += log_prob
        return totals

    def generate_until(self, requests: list[HarnessRequest], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, greedy or drawn, up to its first stop, and not stripped.

        The answers to a document that a task asks about several times (``repeats``) differ where they are drawn. HFLM
        draws from the 50 most likely tokens where a task does not say; here from all of them.

        Raises ``DataError`` that names the task for unknown settings, for numbers out of bounds, and for more new
        tokens than the model's context has room for.
        """
        from megatron_ext.inference.generation import GenerateRequest

        end = self.lm.tokenizer.decode([self.eot_token_id], skip_special=False)
        asked, stops, times = [], [], dict[Any, int]()
        for request in requests:
            context, given = request.args
            settings: dict[str, Any] = dict(normalize_gen_kwargs(given, MAX_NEW_TOKENS))
            until, new = handle_stop_sequences(settings.pop("until"), eos=end), settings.pop("max_gen_toks")
            place = f"task {request.task_name!r}"
            if others := sorted(settings.keys() - {*SAMPLING}):
                allowed = ", ".join(("until", "max_gen_toks", *SAMPLING))
                raise DataError(f"{place}: unknown generation setting {others[0]!r}; allowed: {allowed}")
            how = _sampling(settings, place)
            room = self.max_length - new
            if new < 1 or room < 1:
                raise DataError(f"{place}: max_gen_toks is {new}; the model's context is {self.max_length}")
            prompt = self._last(request, self.tok_encode(context), room)
            if not prompt:
                raise DataError(f"{place}, document {request.doc_id}: nothing to continue")
            one = GenerateRequest(prompt, new, tuple(stop for stop in until if stop and stop != end), how)
            key = (tuple(prompt), new, one.stops, how)
            times[key] = times.get(key, 0) + 1
            asked.append(one if how is None else replace(one, sampling=replace(how, seed=times[key] - 1)))
            stops.append(until)
        answers = self.lm.generate(asked)
        return [
            postprocess_generated_text(self.lm.tokenizer.decode(ids), until, None)
            for ids, until in zip(answers, stops, strict=True)
        ]

    def _pair(self, context: str, continuation: str) -> Pair:
        if context:
            return self._encode_pair(context, continuation)
        ids = self.tok_encode(continuation, add_special_tokens=False)
        if ids[:1] == [self.prefix_token_id]:
            return ids[:1], ids[1:]
        return [self.prefix_token_id], ids

    def _scores(self, requests: Sequence[HarnessRequest], pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        from megatron_ext.inference.scoring import ScoreRequest

        asked = []
        for request, (prompt, target) in zip(requests, pairs, strict=True):
            if not prompt or not 1 <= len(target) <= self.max_length:
                raise DataError(
                    f"task {request.task_name!r}, document {request.doc_id}: a context of {len(prompt)} tokens and a "
                    f"continuation of {len(target)}; the model's context is {self.max_length}"
                )
            # The last token of the target is not read, only predicted.
            asked.append(ScoreRequest(self._last(request, prompt, self.max_length + 1 - len(target)), target))
        return [(score.log_prob, score.greedy) for score in self.lm.score(asked)]

    def _last(self, request: HarnessRequest, ids: list[int], room: int) -> list[int]:
        """The last ``room`` ids; a request that loses some is noted."""
        if len(ids) > room:
            self.cut.add((request.task_name, request.doc_id))
        return ids[-room:]

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        raise TypeError("the harness wants this method; requests are scored by loglikelihood, which knows their tasks")


def _sampling(settings: Mapping[str, Any], place: str) -> Sampling | None:
    """How a task's answers are drawn; None where they are greedy. Raises ``DataError`` for a number out of bounds."""
    from megatron_ext.inference.sampling import Sampling

    if not settings.get("do_sample") or settings.get("temperature") == 0:
        return None
    top_k = settings.get("top_k") or None  # 0 means all tokens to HFLM
    try:
        how = Sampling(float(settings.get("temperature", 1.0)), float(settings.get("top_p", 1.0)), top_k)
        how.check()
    except (TypeError, ValueError) as error:
        raise DataError(f"{place}: {error}") from None
    return how
