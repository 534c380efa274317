"""How a judge is reached and asked."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from megatron_ext.schema import Line, Strict

# Names of variables that hold a judge's key, and beginnings of names that hold keys to something else.
KEY_NAME = re.compile(r"(?:[A-Z][A-Z0-9_]{0,48}_)?API_KEY|JUDGE_[A-Z0-9_]{1,56}")
OTHERS = ("AWS_", "COMET_", "GH_", "GITHUB_", "GITLAB_", "HF_", "HUGGING", "NGC_", "SLURM_", "WANDB_")


class JudgeSettings(Strict):
    """A language model behind an OpenAI-compatible endpoint that judges answers, and how it is asked.

    A setting of the request that is null is not sent. The key itself is never here: its variable is named.
    """

    base_url: str = Field(description="what /chat/completions is added to, such as https://host/v1")
    model: Line = Field(min_length=1)
    api_key_env: str | None = Field(
        None, description="NAME of the environment variable with the key, *_API_KEY or JUDGE_*; null: no key"
    )
    max_examples: int | None = Field(100, ge=1, description="examples of a set at most; null: all")
    concurrency: int = Field(4, ge=1, le=256, description="requests at a time")
    timeout_seconds: float = Field(60.0, gt=0, le=86400, description="of a request, all of it")
    retries: int = Field(3, ge=0, description="further tries of a request that failed")
    backoff_seconds: float = Field(1.0, ge=0, description="before the first of them; doubles, to a minute at most")
    give_up_after: int = Field(20, ge=1, description="requests that fail in a row; nothing is asked after them")
    min_answered: float = Field(0.9, gt=0, le=1, description="share of judgements without which a metric is null")
    temperature: float | None = Field(0.0, ge=0)
    seed: int | None = 0
    max_tokens: int | None = Field(300, ge=1)

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str) -> str:
        # No message repeats what was given: it may be a secret in the wrong place.
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or not url.isascii() or any(char.isspace() or not char.isprintable() for char in url):
            raise ValueError("must be an address such as https://host/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("must hold neither user, password, query nor fragment; a key goes through 'api_key_env'")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, name: str | None) -> str | None:
        # Nor does this one: a name that is none may be the key itself.
        if name is not None and (not KEY_NAME.fullmatch(name) or name.startswith(OTHERS)):
            raise ValueError(
                "must be the NAME of an environment variable for a judge's key: *_API_KEY, such as OPENAI_API_KEY, or "
                f"JUDGE_*; not of another secret, such as {', '.join(f'{other}*' for other in OTHERS)}"
            )
        return name

    @model_validator(mode="after")
    def _private(self) -> JudgeSettings:
        if self.api_key_env is not None and urlsplit(self.base_url).scheme != "https" and not self.is_here:
            raise ValueError("base_url: must be https://... where a key is sent, except to this machine (localhost)")
        return self

    @property
    def is_here(self) -> bool:
        """Whether the endpoint is on this machine: ``localhost``, or an address of the loopback interface."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def sends(self) -> str:
        """What goes where, in a sentence for the person who starts it."""
        key = f"the key in {self.api_key_env}" if self.api_key_env else "no key"
        plain = "" if self.is_here or urlsplit(self.base_url).scheme == "https" else ", unencrypted"
        return f"questions, answers and {key} go to {self.base_url}{plain}"
