"""Log-probabilities of the forget sequences under the target: ``python -m megatron_ext.steps.reference SPEC.yaml`` (see
specs.ReferenceSpec).

They are computed once. NPO and its kin compare with them, and so hold no second model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from megatron_ext.data.reference_log_probs import FILE
from megatron_ext.data.sequences import Sequences, save_arrays
from megatron_ext.specs import ReferenceSpec, read
from megatron_ext.summary import Clock


def main(argv: list[str] | None = None) -> None:
    """Write ``reference.npz`` and ``summary.json`` into the output folder.

    Raises ``ValueError`` naming the sequence that the model cannot read, or whose log-probability is not finite.
    """
    (path,) = sys.argv[1:] if argv is None else argv
    clock = Clock()
    spec: ReferenceSpec = read(Path(path), ReferenceSpec)
    sequences = Sequences.load(spec.data)

    from megatron_ext.distributed import process_groups

    with process_groups.start(spec.runtime) as ranks:
        # After start(), which settles device and warnings before megatron-core is imported.
        from megatron_ext.checkpoint import reading
        from megatron_ext.checkpoint.fingerprint import model_fingerprint
        from megatron_ext.inference.scoring import ScoreRequest, score

        model = reading.load(spec.checkpoint, ranks)
        rows = (sequences.row(i) for i in range(len(sequences)))
        requests = [ScoreRequest(ids[:prompt].tolist(), ids[prompt:].tolist()) for ids, prompt in rows]
        clock.mark("startup")
        try:
            scores = score(model, ranks, requests, spec.token_budget)
        except ValueError as error:
            raise ValueError(f"{spec.data}: {error}") from error
        log_probs = np.array([s.log_prob for s in scores], np.float64)
        if not np.isfinite(log_probs).all():
            wrong = int(np.flatnonzero(~np.isfinite(log_probs))[0])
            raise ValueError(f"{spec.checkpoint}: sequence {wrong} has log-probability {log_probs[wrong]}")
        clock.mark("work")
        if ranks.world_rank == 0:
            tokens = np.array([s.tokens for s in scores], np.int64)
            save_arrays(
                spec.output / FILE,
                log_probs=log_probs,
                tokens=tokens,
                data_sha256=np.array(sequences.sha256()),
                model_fingerprint=np.array(model_fingerprint(spec.checkpoint)),
            )
            clock.mark("write")
            clock.write(spec.output, sequences=len(scores), tokens=int(tokens.sum()))


if __name__ == "__main__":
    main()
