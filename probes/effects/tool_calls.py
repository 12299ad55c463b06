"""Which mistakes are made in tool calls, before and after tuning."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.effects.answers import greedy_texts
from probes.effects.panel import CHANGE, EffectPanel, paired_lines, table_of
from probes.effects.rewriting import column_of
from probes.replay import counted
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts

KINDS = (
    "right", "no call", "broken call", "wrong tool", "missing argument", "invented argument", "wrong value",
)  # fmt: skip
"""What a reply can be, the first that fits; each reply is one."""
_NAMES, _ARGUMENTS = ("name", "tool", "function"), ("arguments", "parameters", "args")


@method(
    "tool-errors",
    group="effects",
    question="Which mistakes does the model make in tool calls, and which did tuning cure or cause?",
    papers=("TL-Training: A Task-Feature-Based Framework for Training Large Language Models in Tool Use",),
    cost="one generated answer per prompt and model",
    example="--calls call",
)
def tool_errors(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    calls: str = "call",
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """Share of replies with each kind of mistake (Ye et al. 2024): no call, broken JSON, another tool, an argument
    missing, invented or wrong.

    A call is the first JSON object of the reply with a name (``name``, ``tool``, ``function``) and its arguments
    (``arguments``, ``parameters``, ``args``). The control of a kind is its share where each reply is judged by another
    row's call: what replies without regard to the question would get.

    Args:
        pair: Both models.
        prompts: Rows with the right call as a column: {"name": ..., "arguments": {...}}, as an object or JSON text.
        calls: The column.
        max_new_tokens: Length of a reply.
        seed: Of the intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is the kind of :data:`KINDS`.

    Raises:
        UserError: A row has no call, or one without a name.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    wanted = [
        read_call(written, number) for number, written in enumerate(column_of(rows, calls, what="the right call"))
    ]
    others = np.roll(np.arange(len(rows)), 1)
    kinds, control = {}, {}
    with counted(pair.base, pair.tuned) as passes:
        for role in ("base", "tuned"):
            texts = greedy_texts(pair.models[role], rows, max_new_tokens, batch_size)
            kinds[role] = np.array([tool_error(text, call) for text, call in zip(texts, wanted, strict=True)])
            control[role] = np.array([tool_error(text, wanted[n]) for text, n in zip(texts, others, strict=True)])
    lines = [
        line for kind in KINDS
        for line in paired_lines(
            kind, {role: (own == kind).astype(float) for role, own in kinds.items()},
            {role: float((own == kind).mean()) for role, own in control.items()}, rows.clusters, seed,
        )
    ]  # fmt: skip
    table = table_of(lines)
    return EffectPanel(
        table=table,
        control="replies judged by the call of another row",
        provenance=Provenance.of("tool_errors", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame(kinds),
        measured="share of replies",
        heading="Mistakes in tool calls",
        verdict=_said(table),
    )  # fmt: skip


def _said(table: pd.DataFrame) -> str:
    """Right calls before and after, beside the control, and the commonest mistake of each model."""
    right = {line["model"]: line for line in table[table["group"] == "right"].to_dict("records")}
    change, wrong = right[CHANGE], table[table["group"] != "right"]
    worst = [
        f"{role} {line['group']} {line['score']:.0%}"
        for role in ("base", "tuned")
        for line in wrong[wrong["model"] == role].nlargest(1, "score").to_dict("records")
    ]
    return (
        f"right {right['base']['score']:.0%} to {right['tuned']['score']:.0%}, tuned - base {change['score']:+.0%} "
        f"[{change['low']:.0%}, {change['high']:.0%}], control {change['control']:+.0%}; commonest mistake: "
        f"{', '.join(worst)}"
    )


def read_call(written: Any, number: int) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a right call. Raises :class:`UserError` naming the row for what is none."""
    call = _as_call(_loads(written) if isinstance(written, str) else written)
    if call is None:
        raise UserError(f'Row {number}: {written!r} is no call: give {{"name": ..., "arguments": {{...}}}}.')
    return call


def tool_error(text: str, wanted: tuple[str, Mapping[str, Any]]) -> str:
    """The kind of :data:`KINDS` that a reply is."""
    start = text.find("{")
    if start < 0:
        return "no call"
    made = _as_call(_first_object(text[start:]))
    if made is None:
        return "broken call"
    name, arguments = made
    if name != wanted[0]:
        return "wrong tool"
    if set(wanted[1]) - set(arguments):
        return "missing argument"
    if set(arguments) - set(wanted[1]):
        return "invented argument"
    same = all(_plain(arguments[key]) == _plain(value) for key, value in wanted[1].items())
    return "right" if same else "wrong value"


def _first_object(text: str) -> Any:
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except ValueError:
        return None


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _as_call(made: Any) -> tuple[str, dict[str, Any]] | None:
    if not isinstance(made, Mapping):
        return None
    inner = made.get("function")
    made = inner if isinstance(inner, Mapping) else made
    name = next((made[key] for key in _NAMES if isinstance(made.get(key), str)), None)
    arguments: Any = next((made[key] for key in _ARGUMENTS if key in made), {})
    arguments = _loads(arguments) if isinstance(arguments, str) else arguments
    return None if name is None or not isinstance(arguments, Mapping) else (name, dict(arguments))


def _plain(value: Any) -> Any:
    """Text without case and spaces at the ends; numbers as numbers however they are written."""
    if isinstance(value, str):
        text = value.strip().casefold()
        return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else text
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
