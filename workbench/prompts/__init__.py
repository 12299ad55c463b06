"""Prompts: rows of plain text or chat messages, from files, lists, tables and data sets.

Token ids are made by :mod:`workbench.prompts.encode`, answers' first tokens by
:mod:`workbench.prompts.answers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.prompts.collection import Prompts as Prompts
    from workbench.prompts.encode import Encoded as Encoded
    from workbench.prompts.row import Message as Message
    from workbench.prompts.row import Prompt as Prompt

__all__ = ["Encoded", "Message", "Prompt", "Prompts"]

__getattr__ = lazy(__name__, {"Prompts": "collection", "Prompt": "row", "Message": "row", "Encoded": "encode"})
