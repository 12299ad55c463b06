"""CPR and CMD of edge rankings on MIB's tasks, as MIB defines them, with intervals over seeds of prompts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

import probes
from probes.edges.faithfulness import SHARES
from tunescope.bench.mib.tasks import task
from tunescope.bench.outside import timed
from workbench.behaviour.scores import next_token_logits, score_answers
from workbench.finished_batches import batch, scope
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts

RANKINGS = {"EAP": 1, "EAP-IG": 5}
"""Method -> steps of the straight line."""


def measure(
    model: AdaptedModel, tasks: list[str], prompts: int, seeds: int, say: Callable[[str], None]
) -> pd.DataFrame:
    """One line per task, method and seed: cpr, cmd, the task's accuracy and seconds."""
    lines: list[dict[str, Any]] = []
    with scope(lambda: ["bench mib", model.identity.hash]):
        for name, seed, method in product(tasks, range(seeds), RANKINGS):
            rows = task(name, prompts, seed)
            make = partial(_measured, model, rows, method, seed)
            measured = batch("circuits", [rows, method, seed], partial(timed, make))
            lines += [{"task": name, "seed": seed, "prompts": prompts, **line} for line in measured]
            say(f"{name}, seed {seed}, {method}: {sum(line['seconds'] for line in measured):.0f} s")
    return pd.DataFrame(lines)


def _measured(model: AdaptedModel, rows: Prompts, method: str, seed: int) -> list[dict[str, Any]]:
    """The lines of one ranking, and with the dearer one those of random edges."""
    scores = score_answers(next_token_logits(model, rows), rows, model.tokenizer, ["accuracy"])
    result = probes.edge_attribution(
        model, rows, steps=RANKINGS[method], curve=True, controls=int(method == "EAP-IG"), batch_size=4, draws=200,
        seed=seed,
    )  # fmt: skip
    return _lines(result.areas, {"method": method, "accuracy": float(scores["accuracy"].mean())})


def cost(tasks: list[str], prompts: int, seeds: int) -> pd.DataFrame:
    """Per task, over all seeds: passes of one prompt. Circuits of every share are run exactly, by two rankings and one
    at random, beside the empty and the whole one."""
    forward = sum(steps + 2 + 3 + len(SHARES) * (2 + (name == "EAP-IG")) for name, steps in RANKINGS.items())
    backward = sum(RANKINGS.values())
    return pd.DataFrame([
        {"task": name, "forward": forward * prompts * seeds, "backward": backward * prompts * seeds} for name in tasks
    ])  # fmt: skip


def _lines(areas: pd.DataFrame | None, said: dict[str, Any]) -> list[dict[str, Any]]:
    """CPR by signed score, CMD by size, as MIB ranks edges for each; random ones beside them."""
    assert areas is not None
    by_method = areas.set_index("method")
    signed, size = areas[areas["method"] == "signed"], areas[areas["method"] == "size"]
    lines = [{**said, "cpr": float(signed["cpr"].item()), "cmd": float(size["cmd"].item())}]
    random = by_method[by_method.index.astype(str).str.startswith("random")]
    if len(random):
        lines.append(
            {**said, "method": "random", "cpr": float(random["cpr"].mean()), "cmd": float(random["cmd"].mean())}
        )
    return lines


def summarised(lines: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with the least and the most; what it cost is counted by :func:`cost`."""
    rows = []
    for (name, method), part in lines.groupby(["task", "method"], sort=False):
        row: dict[str, Any] = {"task": name, "method": method, "seeds": len(part), "accuracy": part["accuracy"].mean()}
        for measure in ("cpr", "cmd"):
            values = part[measure].to_numpy()
            row |= {measure: float(np.mean(values)), f"{measure}_least": values.min(), f"{measure}_most": values.max()}
        rows.append(row)
    return pd.DataFrame(rows)
