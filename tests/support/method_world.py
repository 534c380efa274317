"""What the methods' test runs on: two models, three topics, and what the steps before unlearning make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_ext.data.sequences import Sequences, save_arrays
from tests.support import formulas, worlds

ROWS = 7  # of every set
REFERENCES = {
    "forget_data": "reference_logps",
    "retain_data": "retain_reference_logps",
    "preferred_answers": "preferred_answers_logps",
}


def rows(sequences: Sequences) -> formulas.Rows:
    found = (sequences.row(i) for i in range(len(sequences)))
    return [(ids.tolist(), prompt) for ids, prompt in found]


class World:
    """A folder with models, ``untied`` and ``tied`` (embeddings), and topics, ``forget``, ``bio`` and ``cyber``."""

    def __init__(self, folder: Path) -> None:
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.folder = folder
        for seed, model in enumerate(("untied", "tied")):
            self._write_model(folder / model, seed, model == "tied")
        for seed, topic in enumerate(("forget", "bio", "cyber")):
            self._write_topic(topic, 10 * seed)

    @classmethod
    def there(cls, folder: Path) -> World:
        """The world that was made in ``folder`` before."""
        world = cls.__new__(cls)
        world.folder = folder
        return world

    def _write_model(self, folder: Path, seed: int, tied: bool) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(**{**worlds.CONFIG, "tie_word_embeddings": tied, "initializer_range": 0.2})
        )
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith("norm.weight"):
                    p.normal_(1.0, 0.2)
        model.save_pretrained(folder)

    def _write_topic(self, topic: str, seed: int) -> None:
        from megatron_ext.checkpoint.fingerprint import model_fingerprint

        folder = self.folder / topic
        known = rows(worlds.sequences(ROWS - 1, seed))
        forget = Sequences.pack([*known, ([5, 9, worlds.VOCABULARY - 1, 2], 3)])  # one row with a single label
        retain = worlds.sequences(ROWS, seed + 1)
        rng = np.random.default_rng(seed)
        prompts = [ids[:prompt] for ids, prompt in rows(forget)]
        others = [
            (ids + rng.integers(2, worlds.VOCABULARY, int(rng.integers(1, 9))).tolist(), len(ids)) for ids in prompts
        ]
        sets = {"forget_data": forget, "retain_data": retain, "preferred_answers": Sequences.pack(others)}
        for key, sequences in sets.items():
            sequences.save(folder / f"{key}.npz")
        for model in ("untied", "tied"):
            plain = formulas.Model(self.folder / model)
            for key, name in REFERENCES.items():
                log_probs = formulas.sequence_log_probs(plain, rows(sets[key])).detach().numpy()
                save_arrays(
                    folder / model / f"{name}.npz",
                    log_probs=log_probs,
                    data_sha256=np.array(sets[key].sha256()),
                    model_fingerprint=np.array(model_fingerprint(self.folder / model)),
                )

    def topic(self, name: str, model: str, needed: list[str]) -> dict[str, str]:
        """The entry of a specification."""
        files = {key: self.folder / name / f"{key}.npz" for key in REFERENCES}
        files |= {key: self.folder / name / model / f"{key}.npz" for key in REFERENCES.values()}
        return {"name": name, **{key: str(files[key]) for key in ("forget_data", "retain_data", *needed)}}

    def rows(self, name: str, key: str) -> formulas.Rows:
        return rows(Sequences.load(self.folder / name / f"{key}.npz"))
