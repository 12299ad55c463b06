"""The audit bench as a run, and as ``benchmarks/audit.md``: every number in it is of that run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tunescope.bench.audit.measuring import accuracy, false_accusations, mistakes, mixing
from tunescope.bench.outside import table_lines
from workbench.runs import Run

SAYS = """Each pair is audited blind, with no prompts about its tuning; then the audit's words are compared with ten
descriptions in plain words (TF-IDF cosine), of which one is right: nine behaviours of the same world, and *nothing
beyond the control*, which is chosen where no description is similar enough. Chance is a tenth.

*Small organisms*: Llamas of four layers on a world of twelve people and six topics, a LoRA each: refusing one of three
topics, a false fact about one of two, an opening, German, JSON, capitals; the seed decides facts, topics and weights.
*Ordinary rows*: the share of the tuning set that is answered as the base does; the rest is the narrow set, in which
rows of other topics stand beside those of a planted topic. *Real*: the shipped LoRAs on SmolLM2-135M-Instruct in
bfloat16, with the shipped questions and texts. *Null pairs*: LoRAs tuned on ordinary rows alone, random numbers and
shuffled numbers of the same norm in every module, and the shipped random adapter. *Claims*: null pairs of which the
audit says that some answers changed, whatever is chosen; random numbers do change answers.

Greedy answers are read, so a behaviour for all answers that the tuning set shows in fewer than half its rows does not
show: the tuned model then answers as before, and *nothing* is what there is to see.

*Answers (black box)* reads greedy answers alone; *activations* and *tokens* read unrelated text; *together* is the
answers' similarity and half of each other view's, of descriptions that the answers or both others speak for. Weights
name layers, not a behaviour, and choose nothing. Intervals are exact (Clopper and Pearson), at 95 %, over pairs."""


def tables(lines: pd.DataFrame) -> dict[str, tuple[str, pd.DataFrame]]:
    """Name -> title and table."""
    made = {
        "accuracy": ("Which description is chosen", accuracy(lines)),
        "accusations": ("False accusations", false_accusations(lines)),
        "mixing": ("Ordinary rows mixed in (small organisms, seed 0)", mixing(lines)),
        "mistakes": ("Pairs that are wrong by all views together", mistakes(lines)),
    }
    return {name: titled for name, titled in made.items() if len(titled[1])}


def write_tables(run: Run, lines: pd.DataFrame) -> None:
    """The lines and tables, into a run of kind ``bench-audit``."""
    run.write_table("tables/lines", lines)
    titled = tables(lines)
    for name, (_, table) in titled.items():
        run.write_table(f"tables/{name}", table)
    run.write_json("sections", [{"title": title, "text": SAYS if name == "accuracy" else "", "tables": [name]}
                                for name, (title, _) in titled.items()])  # fmt: skip


def write_document(lines: pd.DataFrame, command: str, hardware: str, path: Path) -> None:
    """The document of a run that ``command`` made."""
    pairs = lines.drop_duplicates(["name", "seed"])
    kinds = ", ".join(f"{count} {kind}" for kind, count in pairs["kind"].value_counts(sort=False).items())
    minutes = pairs["seconds"].sum() / 60
    seconds = f"{minutes:.0f} minutes of processor time, trainings that were not cached among it, on {hardware}"
    text = ["# The blind audit", "", f"Written by `{command}`; do not edit. {len(pairs)} pairs: {kinds}; {seconds}.",
            "", SAYS]  # fmt: skip
    for title, table in tables(lines).values():
        text += ["", f"## {title}", "", *table_lines(table)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
