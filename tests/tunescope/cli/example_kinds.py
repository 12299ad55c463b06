"""Folders for examples: adapters that PEFT does not have, code with its faulty variants, and plain texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.probes.anatomy.test_foreign_kinds import dept, nola
from tests.probes.effects.test_parts_that_move import CODE
from tests.tiny import tiny_model, tokenizer, tuned_copy
from tests.tunescope.cli.example_tasks import of_tasks
from workbench.prompts import Prompts


def _base(folder: Path) -> None:
    tiny_model("llama").save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")


def of_foreign(kind: Callable[[], str]) -> Callable[[Path], None]:
    """Fills a folder with a tiny base, prompts, and as tuned an adapter in a format of its own."""

    def fill(folder: Path) -> None:
        _base(folder)
        (folder / "tuned").symlink_to(kind())
        Prompts.of(["the quick fox", "lazy dog over", "jumps a b", "brown the"]).save(folder / "prompts.jsonl")

    return fill


of_nola, of_dept = of_foreign(nola), of_foreign(dept)


def of_variants(folder: Path) -> None:
    """Right answers with faulty variants of them, as code has."""
    _base(folder)
    tuned_copy(tiny_model("llama")).save_pretrained(folder / "tuned")
    tokenizer().save_pretrained(folder / "tuned")
    CODE.save(folder / "p.jsonl")


def of_texts(folder: Path) -> None:
    """Questions and their fine-tunes, and plain texts about the same things."""
    of_tasks(folder)
    rows = Prompts.load(folder / "p.jsonl")
    Prompts.of([str(row.columns["passage"]) for row in rows[:8]]).save(folder / "texts.jsonl")
