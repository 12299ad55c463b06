"""Work that a stranger's file asks for, tried first in a process of its own with bounded time and memory.

Regular expressions and chat templates come with models and adapters and can run without end; nothing in this process
can stop them once they have begun.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any, Literal

SECONDS = 5
"""Of the processor's time."""
_WAITED = 180 if importlib.util.find_spec("resource") else 15
"""Seconds by the clock. Where the processor's time is limited these only guard against a process that stands still: on
a busy machine a harmless one waits long for its turn."""
MEMORY = 2**30
"""Bytes of address space of the process."""
_LIMITS = f"""
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
    resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS + 1}))
except (ImportError, ValueError, OSError):
    pass
payload = json.loads(sys.stdin.buffer.read())
"""
_MATCHING = """
import re
for pattern in payload["patterns"]:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        continue
    for name in payload["names"]:
        compiled.fullmatch(name)
"""
_RENDERING = """
from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
import re
def refuse(message):
    raise TemplateError(message)
text = re.sub(r"{%-?\\s*(end)?generation\\s*-?%}", "", payload["template"])
made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
made.filters["tojson"] = lambda value, **more: json.dumps(value, ensure_ascii=False)
made.globals.update(raise_exception=refuse, strftime_now=lambda form: "1 January 2026")
size = 0
try:
    for part in made.from_string(text).generate(**payload["values"]):
        size += len(part)
        if size > payload["most"]:
            sys.exit(3)
except MemoryError:
    sys.exit(3)
except Exception:
    pass
"""
Verdict = Literal["fine", "too long", "too large"]


def matching(patterns: list[str], names: list[str]) -> Verdict:
    """Whether matching every pattern (regular expressions) with every name comes to an end in time."""
    return _tried(_MATCHING, {"patterns": patterns, "names": names})


def rendering(template: str, values: dict[str, Any], most: int) -> Verdict:
    """Whether a chat template with ``values`` comes to an end in time, in memory and within ``most`` characters."""
    return _tried(_RENDERING, {"template": template, "values": values, "most": most})


def _tried(code: str, payload: dict[str, Any]) -> Verdict:
    given = json.dumps(payload, default=str).encode()
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _LIMITS + code],
            input=given, capture_output=True, timeout=_WAITED, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "too long"
    if done.returncode == 3 or b"MemoryError" in done.stderr:
        return "too large"
    return "too long" if done.returncode < 0 else "fine"
