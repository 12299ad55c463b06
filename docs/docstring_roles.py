"""For mkdocstrings: Sphinx roles in docstrings become code, and neighbouring brackets stay text."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([^`]+)`")


class DocstringRoles(griffe.Extension):
    """Applied to every object that a page shows."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """``:class:`Patching``` reads as ``Patching``; ``[prompt][strength]`` is no link."""
        if obj.docstring is not None:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = text.replace("][", "]\\[")
