"""Other answers to the forget set's prompts, which a model samples: ``python -m megatron_ext.steps.alternatives
SPEC.yaml`` (see specs.AlternativesSpec).

A preference loss then prefers them to the answers that are to be forgotten.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_ext.data.sequences import Sequences
from megatron_ext.specs import AlternativesSpec, read
from megatron_ext.summary import Clock

FILE = "alternatives.npz"


def main(argv: list[str] | None = None) -> None:
    """Write ``alternatives.npz`` and ``summary.json`` into the output folder: ``per_row`` sequences for each of
    ``data``'s, row by row.

    A sampled answer ends as those of ``data`` do: with the token that closes all of them. Raises ``ValueError`` naming
    a sequence that ends otherwise, or that the model cannot read.
    """
    (path,) = sys.argv[1:] if argv is None else argv
    clock = Clock()
    spec: AlternativesSpec = read(Path(path), AlternativesSpec)
    sequences = Sequences.load(spec.data)
    end, rows = closing(sequences, spec.data), map(sequences.row, range(len(sequences)))
    prompts = [ids[:prompt].tolist() for ids, prompt in rows]

    from megatron_ext.distributed import process_groups

    with process_groups.start(spec.runtime) as ranks:
        # After start(), which settles device and warnings before megatron-core is imported.
        from megatron_ext.checkpoint import reading
        from megatron_ext.inference.generation import GenerateRequest, generate, samples
        from megatron_ext.inference.sampling import Sampling
        from megatron_ext.model.families import family_of

        model = reading.load(spec.checkpoint, ranks)
        context = family_of(model.hf_config).context(model.hf_config)
        way = Sampling(spec.temperature, spec.top_p, spec.top_k, spec.seed)
        each = [samples(GenerateRequest(prompt, spec.max_new_tokens, sampling=way), spec.per_row) for prompt in prompts]
        clock.mark("startup")
        try:
            answers = generate(model, ranks, [one for some in each for one in some], [end], spec.token_budget)
        except ValueError as error:
            raise ValueError(f"{spec.data}: {error}") from error
        clock.mark("work")
        if ranks.world_rank == 0:
            repeated = (prompt for prompt in prompts for _ in range(spec.per_row))
            made = Sequences.pack(
                ([*prompt, *answer[: context - len(prompt) - 1], end], len(prompt))
                for prompt, answer in zip(repeated, answers, strict=True)
            )
            made.save(spec.output / FILE)
            clock.mark("write")
            same = sum(_same(sequences, i // spec.per_row, made, i) for i in range(len(made)))
            clock.write(spec.output, sequences=len(made), tokens=sum(map(len, answers)), unchanged=same)


def closing(sequences: Sequences, path: Path) -> int:
    """The token that ends every sequence; raises ``ValueError`` that names one that ends otherwise."""
    ends = [int(sequences.row(i)[0][-1]) for i in range(len(sequences))]
    for i, end in enumerate(ends):
        if end != ends[0]:
            raise ValueError(f"{path}, row {i}: ends with the token {end}, the first row with {ends[0]}: not answers")
    return ends[0]


def _same(first: Sequences, i: int, second: Sequences, j: int) -> bool:
    """Whether a sampled answer is the one to be forgotten."""
    return first.row(i)[0].tolist() == second.row(j)[0].tolist()


if __name__ == "__main__":
    main()
