"""What a model file may say, and what an experiment may say of a model in its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from megatron_ext.config import Layout
from megatron_ext.schema import Line, Strict
from pipeline.config.located_yaml import NAME
from pipeline.data.errors import printable
from pipeline.data.settings import BpeTokenizer, TemplateName, TemplateParts, Trims
from pipeline.data.templates import SYSTEM, TEMPLATES

LONGEST_NAME = 100  # of the 255 characters that a folder's name may have; others are put beside it
Name = Annotated[str, Field(pattern=NAME, max_length=LONGEST_NAME, description="goes into folder names")]


class TemplateBlock(Strict):
    """A prompt template in a model file: one by its name with another system prompt, or all parts."""

    name: TemplateName | None = None
    system: str | None = Field(None, description="in place of the named template's system prompt")
    before_question: str | None = None
    after_question: str | None = None
    before_answer: str | None = None
    after_answer: str | None = Field(None, description="the token that closes an answer")
    adds_bos: bool | None = Field(None, description="whether the tokenizer's own start token goes first")
    special_tokens: list[str] | None = Field(None, description="texts that must be one token each")
    trims: Trims | None = Field(None, description="whether white space around question and answer, or one, is removed")
    labels_by_length: bool | None = Field(
        None, description="whether labels begin after as many tokens of the whole text as the prompt has by itself"
    )

    @property
    def parts(self) -> TemplateParts:
        """The template."""
        given = self.model_dump(exclude={"name", "system"}, exclude_none=True)
        if self.name is None:
            return TemplateParts(**given)
        named = TEMPLATES[self.name].parts
        if self.system is not None:
            before = named.before_question.replace(SYSTEM, self.system)
            named = named.model_copy(update={"before_question": before})
        return named.model_copy(update=given)

    @model_validator(mode="after")
    def _whole(self) -> TemplateBlock:
        if self.name is None:
            for key in ("before_question", "after_question"):
                if getattr(self, key) is None:
                    raise ValueError(f"{key}: is missing; or give the 'name' of a template to start from")
            if self.system is not None:
                raise ValueError("system: goes with a template's 'name'; here it is a part of before_question")
        elif self.system is not None and SYSTEM not in TEMPLATES[self.name].before_question:
            raise ValueError(f"system: {self.name!r} has no system prompt; write before_question in its place")
        for token in self.parts.special_tokens:
            if token not in "".join(map(str, self.parts.model_dump(exclude={"special_tokens"}).values())):
                raise ValueError(f"special_tokens: {token!r} is in none of the parts")
        return self


def kind(value: Any) -> str:
    """Which of two forms a key has: a mapping, or one of some texts."""
    return "mapping" if isinstance(value, dict | Strict) else "plain"


# A template by its name, the tokenizer's own, or parts.
Choice = Annotated[
    Annotated[Literal[TemplateName, "tokenizer"], Tag("plain")] | Annotated[TemplateBlock, Tag("mapping")],
    Discriminator(kind),
]


class Checkpoint(Strict):
    """A published model: a hub repository, or a local folder (a relative one starts at the file's own), alone or with
    LoRA adapters that are merged into it."""

    hub: str | None = None
    revision: str | None = Field(None, description="commit, tag or branch of the repository; default: its main branch")
    folder: Path | None = Field(None, strict=False)
    adapter: Path | None = Field(None, strict=False, description="folder of adapters, as peft writes it")

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
    title: Line
    template: Choice
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
    adapter: Path | None = Field(None, strict=False, description="folder of adapters, as peft writes it")
    name: Name | None = Field(None, description="default: by the repository or folder")
    title: Line | None = None
    template: Choice | None = Field(None, description="default: the tokenizer's chat template, else plain")
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
        return Checkpoint(hub=self.hub, revision=self.revision, folder=self.path, adapter=self.adapter)

    def whole(self, template: Literal["tokenizer", "plain"], trained: bool) -> Model:
        """The model entry that it stands for.

        Args:
            template: What is taken where none is given.
            trained: Whether the target is trained here.
        """
        place = self.hub or str(self.path)
        last = re.sub(r"[^a-z0-9._-]+", "-", Path(place).name.lower()).strip("-._")[:LONGEST_NAME] or "model"
        return Model(
            name=self.name or last,
            title=self.title or " ".join(printable(self.hub or Path(place).name).split()),
            template=template if self.template is None else self.template,
            checkpoints=Checkpoints(base=self.checkpoint) if trained else Checkpoints(target=self.checkpoint),
            layouts=self.layouts,
        )
