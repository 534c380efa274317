"""How a judge is reached and asked."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from megatron_ext.schema import Strict


class JudgeSettings(Strict):
    """A language model behind an OpenAI-compatible endpoint that judges answers, and how it is asked.

    A setting of the request that is null is not sent. The key itself is never here: its variable is named.
    """

    base_url: str = Field(description="what /chat/completions is added to, such as https://host/v1")
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(None, description="NAME of the environment variable with the key; null: no key")
    max_examples: int | None = Field(100, ge=1, description="examples of a set at most; null: all")
    concurrency: int = Field(4, ge=1, le=256, description="requests at a time")
    timeout_seconds: float = Field(60.0, gt=0, description="of a request, all of it")
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
        if not good or any(char.isspace() or not char.isprintable() for char in url):
            raise ValueError("must be an address such as https://host/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("must hold neither user, password, query nor fragment; a key goes through 'api_key_env'")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name):
            raise ValueError("must be the NAME of an environment variable, in capitals, such as OPENAI_API_KEY")
        return name
