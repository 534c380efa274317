"""Rows to token ids: prompts without labels, answers with labels, end token included. Nothing is ever truncated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_ext.data.sequences import Sequences
from pipeline.data import user_files
from pipeline.data.errors import DataError
from pipeline.data.qa_rows import Row
from pipeline.data.settings import BadRows
from pipeline.data.templates import Template
from pipeline.data.tokenizer import Tokenizer, special_token_fault


@dataclass(frozen=True)
class Encoder:
    """Encodes rows with one tokenizer and template.

    Attributes:
        tokenizer: what cuts texts into tokens
        template: how a question and its answer become one text
        max_length: tokens of a sequence at most
        bad_rows: what becomes of rows that cannot be used: ``error`` or ``drop``
    """

    tokenizer: Tokenizer
    template: Template
    max_length: int
    bad_rows: BadRows

    def __post_init__(self) -> None:
        fault = special_token_fault(self.tokenizer, self.template.special_tokens)
        if fault:
            raise DataError(f"template: {fault}")

    def pairs(self, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Ids before the labels and target ids of each (question, answer) pair.

        A target ends with one end token: the template's, where it closes answers with one, else the tokenizer's.

        With ``template.labels_by_length`` the ids before the labels are the start of the whole text, of the prompt's
        length; otherwise they are the prompt's own.

        Halves of characters, which no tokenizer takes, are encoded as question marks; ``fault`` finds them.
        """
        texts = [(_written(question), _written(answer)) for question, answer in texts]
        special, closing = self.template.adds_bos, self.tokenizer.closing(self.template)
        prompts = self.tokenizer.encode_batch([self.template.prompt(q) for q, _ in texts], special)
        wholes = self.tokenizer.encode_batch([self.template.text(q, a) for q, a in texts], special)
        pairs = []
        for (_, answer), prompt, whole in zip(texts, prompts, wholes, strict=True):
            target = whole[len(prompt) :]
            if self.template.labels_by_length:
                prompt = whole[: len(prompt)]
            elif whole[: len(prompt)] != prompt:
                # The tokenizer joined the end of the prompt and the start of the answer into one token. Labels that
                # started after it would leave the answer's first characters unlearned and unscored, and the prompt
                # that is scored would differ from the one that is generated from: so the answer is encoded by itself.
                target = self.alone(self.template.completion(answer))
            if not target or target[-1] not in (self.tokenizer.eos_id, closing):
                target.append(self.tokenizer.eos_id)
            pairs.append((prompt, target))
        return pairs

    def alone(self, text: str) -> list[int]:
        """Ids of ``text`` as it stands inside a longer text, whatever comes before it."""
        # After a line end, where no merge crosses it: some tokenizers put a space before the start of what they are
        # given, which is not in the text.
        for anchor in ("\n", ""):
            start, whole = (self.tokenizer.encode(anchor + part, special=False) for part in ("", text))
            if whole[: len(start)] == start:
                break
        return whole[len(start) :]

    def training(self, rows: Sequence[Row], origin: str) -> tuple[Sequences, int]:
        """Labelled sequences of ``rows``, and the number of rows dropped; raises ``DataError`` naming a bad row."""
        kept, dropped = self.labelled(rows, [f"{origin}, row {index}" for index in range(len(rows))])
        return Sequences.pack(kept), dropped

    def labelled(self, rows: Sequence[Row], places: Sequence[str]) -> tuple[list[tuple[list[int], int]], int]:
        """Ids and prompt length of each row, and the number of rows dropped.

        Args:
            rows: questions with their answers
            places: what to call each row in a message

        Raises:
            DataError: a row is bad, and bad rows are errors
        """
        kept, dropped = [], 0
        pairs = self.pairs([(row.question, row.answer) for row in rows])
        for row, place, (prompt, target) in zip(rows, places, pairs, strict=True):
            fault = self._fault(row.question, row.answer, prompt, target)
            if fault is None:
                kept.append((prompt + target, len(prompt)))
            else:
                dropped += self.drop(f"{place}, answer", fault)
        return kept, dropped

    def alternatives(self, rows: Sequence[Row], answers: Sequence[Sequence[str]], count: int, origin: str) -> Sequences:
        """Sequences of other answers to the same questions, aligned with those of ``training``.

        Args:
            rows: the rows whose questions are answered
            answers: of each row its other answers, of which the first ``count`` that fit are used
            count: number of sequences of each row; where fewer answers fit, they repeat
            origin: where the rows came from, for messages

        Returns:
            ``count`` sequences of each row that ``training`` keeps, row by row

        Raises:
            DataError: none of a row's other answers fits, which would leave the two sets unaligned
        """
        kept = []
        pairs = self.pairs([(row.question, row.answer) for row in rows])
        for index, (row, own, texts) in enumerate(zip(rows, pairs, answers, strict=True)):
            if self._fault(row.question, row.answer, *own) is not None:
                continue
            fitting: list[tuple[list[int], list[int]]] = []
            for first in range(0, len(texts), count):
                part = texts[first : first + count]
                encoded = self.pairs([(row.question, text) for text in part])
                faults = [self._fault(row.question, text, *pair) for text, pair in zip(part, encoded, strict=True)]
                fitting += [pair for pair, fault in zip(encoded, faults, strict=True) if fault is None]
                if len(fitting) >= count:
                    break
            if not fitting:
                raise DataError(f"{origin}, row {index}: {faults[-1]}; none of its alternative answers fits")
            kept += [(prompt + target, len(prompt)) for prompt, target in (fitting * count)[:count]]
        return Sequences.pack(kept)

    def evaluation(
        self, rows: Sequence[Row], origin: str, places: Sequence[str] | None = None
    ) -> tuple[list[dict[str, Any]], int]:
        """The records of ``evaluation/<set>.jsonl``, and the number of rows dropped.

        A row with one bad target is bad as a whole. A record's ``index`` counts all rows, those dropped included.
        ``places`` are what to call the rows in a message; by default their numbers after ``origin``. A record's
        ``before`` are the ids before each target, where these are not the prompt's.
        """
        texts = [_targets(row) for row in rows]
        pairs = iter(
            self.pairs([(row.question, a) for row, named in zip(rows, texts, strict=True) for a in named.values()])
        )
        prompts = self._prompts(rows)
        records, dropped = [], 0
        for index, (row, named) in enumerate(zip(rows, texts, strict=True)):
            encoded = {key: next(pairs) for key in named}
            faults = ((key, self._fault(row.question, named[key], *encoded[key])) for key in named)
            key, fault = next(((key, fault) for key, fault in faults if fault is not None), ("", None))
            if fault is not None:
                place = places[index] if places else f"{origin}, row {index}"
                dropped += self.drop(f"{place}, {key}", fault)
                continue
            prompt = encoded["answer"][0] if prompts is None else prompts[index]
            record = {
                "index": index,
                "question": row.question,
                "answer": row.answer,
                "prompt_ids": prompt,
                "targets": {key: target for key, (_, target) in encoded.items()},
            }
            before = {key: start for key, (start, _) in encoded.items() if start != prompt}
            records.append({**record, "before": before} if before else record)
        return records, dropped

    def _prompts(self, rows: Sequence[Row]) -> list[list[int]] | None:
        """What is generated from, where that is not what stands before the labels."""
        if not self.template.labels_by_length:
            return None
        texts = [self.template.prompt(_written(row.question)) for row in rows]
        return self.tokenizer.encode_batch(texts, self.template.adds_bos)

    def _fault(self, question: str, answer: str, prompt: list[int], target: list[int]) -> str | None:
        if not answer.strip():
            return "no answer token: the answer is empty"
        unwritten = user_files.fault(question) or user_files.fault(answer)
        if unwritten:
            return unwritten
        length = len(prompt) + len(target)
        if length > self.max_length:
            return f"{length} tokens, more than max_length {self.max_length}"
        return None

    def drop(self, place: str, fault: str) -> int:
        """Count a row that is left out: returns 1, or raises ``DataError`` where bad rows are errors."""
        if self.bad_rows == "error":
            raise DataError(f"{place}: {fault} (bad_rows: drop leaves such rows out and counts them)")
        return 1


def _written(text: str) -> str:
    """``text`` with question marks for halves of characters."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _targets(row: Row) -> dict[str, str]:
    """Every answer that is scored after the row's question, by its name in the evaluation files."""
    paraphrased = {} if row.paraphrased is None else {"paraphrased": row.paraphrased}
    return {"answer": row.answer, **paraphrased, **{f"perturbed_{i}": text for i, text in enumerate(row.perturbed)}}
