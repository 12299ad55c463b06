"""What a request may say, in OpenAI's names, with ``recipe`` and ``strength`` beside them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.errors import UserError


class Part(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        """Role and text, as chat templates read them."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class Options(BaseModel):
    """What both kinds of completion share. A field that is not known here is refused, never ignored."""

    model_config = ConfigDict(extra="forbid")
    model: str
    recipe: str | None = None
    strength: float = Field(default=1.0, allow_inf_nan=False)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, bool] | None = None
    n: Literal[1] = 1
    user: str | None = None

    @property
    def stops(self) -> list[str]:
        """The texts that end a completion."""
        texts = [] if self.stop is None else [self.stop] if isinstance(self.stop, str) else self.stop
        return [text for text in texts if text]

    @property
    def limit(self) -> int | None:
        """Tokens that the request asks for at most."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with the counts."""
        return bool((self.stream_options or {}).get("include_usage"))


class ChatRequest(Options):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)

    def row(self) -> dict[str, Any]:
        """The prompt as a row."""
        return {"messages": [message.plain() for message in self.messages]}


class TextRequest(Options):
    """``POST /v1/completions``."""

    prompt: str = Field(min_length=1)

    def row(self) -> dict[str, Any]:
        """The prompt as a row: read as it is, without a chat template."""
        return {"prompt": self.prompt, "chat": False}


def parsed(kind: type[ChatRequest] | type[TextRequest], body: bytes) -> ChatRequest | TextRequest:
    """The request. Raises :class:`UserError` that names the field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        said = "is no option of this server" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise UserError(f"{where}: {said}.") from None
