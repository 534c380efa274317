"""What a model file may say, and what an experiment may say of a model in its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from megatron_ext.config import Layout
from megatron_ext.schema import Strict
from pipeline.data.settings import BpeTokenizer, TemplateName

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="goes into folder names")]


class Checkpoint(Strict):
    """A published model: a hub repository, or a local folder (a relative one starts at the file's own)."""

    hub: str | None = None
    revision: str | None = Field(None, description="commit, tag or branch of the repository; default: its main branch")
    folder: Path | None = Field(None, strict=False)

    @model_validator(mode="after")
    def _one(self) -> Checkpoint:
        if (self.hub is None) == (self.folder is None):
            raise ValueError("give exactly one of 'hub' and 'folder'")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision: only a 'hub' repository has revisions")
        return self


class Checkpoints(Strict):
    base: Checkpoint | None = None
    target: Checkpoint | None = None
    retrain: dict[str, Checkpoint] = Field({}, description="by forget split")


class Model(Strict):
    """Where a model comes from: ``architecture`` and ``tokenizer`` to make one, or published ``checkpoints``.

    ``architecture`` is a Hugging Face ``config.json``; of a published model it states what layouts are checked against.
    """

    name: Name
    title: str
    template: TemplateName
    architecture: dict[str, Any] | None = None
    tokenizer: BpeTokenizer | None = None
    checkpoints: Checkpoints = Checkpoints()
    layouts: dict[int, Layout] = Field({}, description="layouts by number of GPUs")

    def published(self, which: str, split: str) -> Checkpoint | None:
        return self.checkpoints.retrain.get(split) if which == "retrain" else getattr(self.checkpoints, which)


class GivenModel(Strict):
    """A whole model entry by a name or folder alone: its files say the rest.

    It is the base where the experiment trains the target, and else the target.
    """

    hub: str | None = None
    revision: str | None = Field(None, description="commit, tag or branch of the repository; default: its main branch")
    path: Path | None = Field(None, strict=False)
    name: Name | None = Field(None, description="default: by the repository or folder")
    title: str | None = None
    template: TemplateName | None = Field(None, description="default: by the tokenizer's chat template")
    layouts: dict[int, Layout] = Field({}, description="layouts by number of GPUs")

    @model_validator(mode="after")
    def _one(self) -> GivenModel:
        if (self.hub is None) == (self.path is None):
            raise ValueError("give exactly one of 'hub' and 'path'")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision: only a 'hub' repository has revisions")
        return self

    @property
    def checkpoint(self) -> Checkpoint:
        """Where it is."""
        return Checkpoint(hub=self.hub, revision=self.revision, folder=self.path)

    def whole(self, template: TemplateName, trained: bool) -> Model:
        """The model entry that it stands for.

        Args:
            template: What its tokenizer speaks for, where none is given.
            trained: Whether the target is trained here.
        """
        place = self.hub or str(self.path)
        last = re.sub(r"[^a-z0-9._-]+", "-", Path(place).name.lower()).strip("-._") or "model"
        return Model(
            name=self.name or last,
            title=self.title or self.hub or Path(place).name,
            template=self.template or template,
            checkpoints=Checkpoints(**{"base" if trained else "target": self.checkpoint}),
            layouts=self.layouts,
        )
