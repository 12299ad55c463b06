"""Where a tensor of an intervention comes from: numbers written out, a file, or an earlier step."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tunescope.experiments.inputs import Scalar
from tunescope.experiments.strict import Strict, refusal


class TensorRef(Strict):
    """A tensor from a safetensors file, or from an earlier step.

    ``from`` a record step: the mean of tuned - base at ``site`` and ``layer``, or with ``where`` the mean of ``role``'s
    rows that match minus that of the others. ``from`` activations: the ``kind`` of direction there. ``from`` concepts
    or knob: the ``direction`` of that number.
    """

    takes: ClassVar[str] = "directions"

    file: str | None = None
    tensor: str | None = None
    """Its name in the file; may be left out where there is one."""
    from_step: str | None = Field(default=None, alias="from")
    layer: int | None = None
    site: str = "resid_post"
    role: Literal["base", "tuned"] = "tuned"
    where: dict[str, Scalar] = Field(default={})
    kind: Literal["mean", "centred", "uncentred"] = "mean"
    direction: int = 0

    @model_validator(mode="after")
    def _one_source(self) -> TensorRef:
        if (self.file is None) == (self.from_step is None):
            raise refusal("give file (a safetensors file), or from (an earlier step).")
        return self


def _source(value: Any) -> str:
    return "numbers" if isinstance(value, list | tuple) else "ref"


TensorSource = Annotated[
    Annotated[list[float] | list[list[float]], Tag("numbers")] | Annotated[TensorRef, Tag("ref")],
    Discriminator(_source),
]
"""Numbers written out, or a :class:`TensorRef`."""
