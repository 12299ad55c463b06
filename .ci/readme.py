"""Run every ```python block of a Markdown file, in order, in one namespace, in an empty folder."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

source = Path(sys.argv[1]).resolve()
blocks = re.findall(r"^```python\n(.*?)^```", source.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
if not blocks:
    sys.exit(f"{source} has no python block")
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    space: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, str(source), "exec"), space)
sys.stdout.write(f"{len(blocks)} block(s) of {source.name} ran as written\n")
