"""One row of a batch that other engines or other rows share, seen as a forward pass of its own."""

from __future__ import annotations

from workbench.engine.context import ForwardContext, Generation
from workbench.engine.template_tokens import TemplateTokens
from workbench.typing import Int, Tensor


def row_context(ids: Int[Tensor, "1 pos"], start: int, prompt: int, template: TemplateTokens | None) -> ForwardContext:
    """The forward pass of one row without padding: ``start`` tokens before it, ``prompt`` of all of them the prompt."""
    return ForwardContext(
        batch=1,
        start=start,
        length=ids.shape[1],
        device=ids.device,
        input_ids=ids,
        attention_mask=None,
        generation=Generation(columns=prompt, rows=1, attention_mask=None),
        template=template,
    )
