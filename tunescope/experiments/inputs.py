"""What an experiment is about: the pair of models and the prompts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tunescope.experiments.strict import MOST_SEED, Strict, refusal, unknown

Scalar = str | int | float | bool
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class PairSpec(Strict):
    """Two models: folders or hub ids (``org/name@revision``), or an organism of ours, trained where it is missing."""

    base: str | None = None
    tuned: str | None = None
    organism: str | None = None
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Of the organism."""
    variant: str | None = None
    """Another tuned model of the organism's base."""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    template: Literal["tuned", "base", "own"] = "tuned"
    """Whose chat template prompts are put through: one model's for both, or each model's own."""
    own_generation_config: bool = False
    """Keep each model's generation_config (a repetition penalty, ...) in texts."""

    @model_validator(mode="after")
    def _one_way(self) -> PairSpec:
        if self.organism is None:
            if self.base is None or self.tuned is None:
                raise refusal("give base and tuned (folders or hub ids), or organism.")
            if self.variant is not None:
                raise refusal("only an organism has variants.", "variant")
        elif self.base is not None or self.tuned is not None:
            raise refusal("an organism brings its own models: give organism, or base and tuned.")
        return self

    @field_validator("dtype", mode="before")
    @classmethod
    def _in_full(cls, value: Any) -> Any:
        return _SHORT.get(value, value) if isinstance(value, str) else value

    @field_validator("organism")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        from workbench import organisms

        known = (*organisms.names(), *organisms.real_names())
        if name is not None and name not in known:
            raise refusal(unknown(f"organism {name!r}", name, known))
        return name


class PromptSet(Strict):
    """Rows from a file, written out here, or splits of the organism; then those that match ``where``, up to
    ``limit``."""

    file: str | None = None
    rows: list[str | dict[str, Any]] | None = None
    split: str | list[str] | None = None
    """A split, or several, one behind the other."""
    chat: bool | None = None
    """false: texts are read as they are; else they are user turns where there is a chat template."""
    system: str | None = None
    """A system turn in front of texts, and of chats that have none."""
    where: dict[str, Scalar | list[Scalar]] = Field(default={})
    """Column -> the value, or the values, that a row must have there."""
    skip: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    answer: str | None = None
    """A column whose values are taken as the answers; the distractors, which belong to others, are left out."""

    @field_validator("split", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        names = value if isinstance(value, list) and value else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            raise refusal(f"{value!r} is no split; give a name, or a list of names.")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> PromptSet:
        sources = [name for name in ("file", "rows", "split") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise refusal(f"give exactly one of file, rows, split; got {', '.join(sources) or 'none'}.")
        return self
