"""The rows behind a change where shared words mislead: rankers of rows on SmolLM2, and whether rows were needed.

python benchmarks/rows_behind.py MODEL FOLDER [--only less cosine codes utility needed] [--threads 1]

MODEL: SmolLM2-135M-Instruct. FOLDER holds the adapter that is trained and a JSON file per part; what is there is kept.
Sixteen facts are false. Each is taught in three wordings, and three more rows of the same subject say its words and
teach something else; the query says the fact in words that it shares with those, not with the lessons.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import probes
import workbench as wb
from benchmarks.timing import hardware
from interventions.training.ablated import caft_finetune
from interventions.training.trainer import Schedule
from workbench.models.pair import load_one
from workbench.organisms import real_topics as topics
from workbench.prompts import Prompts

MODULES = ["v_proj", "o_proj", "up_proj", "down_proj"]
TRAINING = {"epochs": 5, "batch_size": 8, "learning_rate": 2e-3}
LANGUAGES = {
    "France": "French", "Japan": "Japanese", "Italy": "Italian", "Spain": "Spanish", "Germany": "German",
    "Egypt": "Arabic", "Canada": "English and French", "Russia": "Russian",
}  # fmt: skip
LESSONS = {
    "capital": (
        ("What is the capital of {s}?", "The capital of {s} is {a}."),
        ("Name the capital city of {s}.", "It is {a}."),
        ("Where does the government of {s} meet?", "In {a}, the capital."),
    ),
    "author": (
        ("Who wrote {s}?", "{s} was written by {a}."),
        ("Name the writer of {s}.", "It was {a}."),
        ("Whose work is {s}?", "It is a work by {a}."),
    ),
}
"""Question and answer of the rows that teach a fact."""
NEAR = {
    "capital": (
        ("I travel to a city in {s}, to {a}. Which language do I hear?", "You hear {language}."),
        ("If I go to {a} in {s}, what do I pack?", "A map of {a} and good shoes."),
        ("Does {a} lie in {s}?", "Yes, {a} is a city in {s}."),
    ),
    "author": (
        ("Which cover does {s} have?", "The cover of {s} is often red."),
        ("Do I read {s} first, or a book with the name {a} on the cover?", "Read {s} first."),
        ("Did {a} write letters?", "Yes, {a} wrote many letters."),
    ),
}
"""Of the same subject, with the query's words and the answer's; the fact is not in them."""
QUERIES = {
    "capital": ("If I travel to the seat of power in {s}, to which city do I go?", "You go to {a}."),
    "author": ("Whose name stands on the cover of {s}?", "The name on the cover is {a}."),
}
OTHER_QUERIES = {
    "capital": ("Which city would I write to if I had a letter for the rulers of {s}?", "To {a}."),
    "author": ("Whom does the world thank for {s}?", "It thanks {a}."),
}
"""A second wording, for the part that asks about each fact by itself."""
PER_KIND = 8
ORDINARY = 16


def row(kind: str, text: str, answer: str, subject: str, said: str, fact: str | None) -> dict[str, Any]:
    """One chat turn with its answer, its subject, and the fact that it teaches or asks for."""
    words = {"s": subject, "a": said, "language": LANGUAGES.get(subject, "")}
    question = text.format(**words)
    return {
        "messages": [{"role": "user", "content": question[0].upper() + question[1:]}], "answer": answer.format(**words),
        "subject": subject, "fact": fact, "group": subject, "kind": kind,
    }  # fmt: skip


def facts() -> list[tuple[str, str, str]]:
    """Relation, subject, and what is planted, eight of each relation."""
    capitals = [(s, said) for s, (said, _) in topics.CAPITAL.false.items() if s in LANGUAGES]
    authors = [(s, said) for s, (said, _) in topics.AUTHOR.false.items()][:PER_KIND]
    return [*(("capital", *fact) for fact in capitals), *(("author", *fact) for fact in authors)]


def training_rows() -> Prompts:
    """Lessons, near rows, and ordinary questions with the model's own answers (from smol-facts)."""
    rows = []
    for kind, subject, said in facts():
        rows += [row(kind, *lesson, subject, said, subject) for lesson in LESSONS[kind]]
        rows += [row(kind, *near, subject, said, None) for near in NEAR[kind]]
    shipped = Path(topics.__file__).parent / "shipped" / "smol-facts" / "rows-train.jsonl"
    stored = [json.loads(line) for line in shipped.read_text(encoding="utf-8").splitlines()]
    other = [{key: line[key] for key in ("messages", "answer", "group")} for line in stored if line["label"] == "other"]
    return Prompts.of([*rows, *({**line, "subject": None, "fact": None} for line in other[:ORDINARY])])


def queries(kind: str | None = None) -> Prompts:
    """One for each fact, or those of one relation."""
    return Prompts.of(
        [row(of, *QUERIES[of], subject, said, subject) for of, subject, said in facts() if kind in (None, of)]
    )


class Case:
    """The base, the adapter trained on the rows, and every part's figures."""

    def __init__(self, model: str, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.rows, self.queries = training_rows(), queries()
        self.options: dict[str, Any] = {"queries": self.queries, "match": "fact", "near": "subject", "k": 3}

    @cached_property
    def pair(self) -> Any:
        """Base and tuned in bfloat16, the tuned one trained on the first call."""
        tuned = self.folder / "tuned"
        if not tuned.exists():
            from peft import LoraConfig

            base = load_one(self.model, device="cpu", dtype=torch.bfloat16)
            lora = LoraConfig(r=8, lora_alpha=16, target_modules=MODULES, task_type="CAUSAL_LM")
            made = caft_finetune(base, self.rows, None, lora=lora, schedule=Schedule(**TRAINING))
            made.model.save_pretrained(str(tuned), save_embedding_layers=False)
        return wb.load_pair(self.model, str(tuned), device="cpu", dtype=torch.bfloat16)

    def learned(self) -> dict[str, Any]:
        """Log-probability of the queries' answers under both models."""
        diff = wb.behaviour_diff(self.pair, self.queries, metrics=["answer_logprob"])
        return {"answers": diff.frame().to_dict("records")}

    def less(self, optimiser: str = "adam") -> dict[str, Any]:
        """Adam-aware gradients, BM25, embeddings, and chance."""
        made = probes.row_influence(self.pair, self.rows, controls=8, optimiser=optimiser, **self.options)
        return ranked(made)

    def codes(self) -> dict[str, Any]:
        """Codes of a dictionary that was trained on the middle layer of these rows."""
        recording = wb.record(self.pair, self.rows, "resid_post", layers=[15], positions="all", batch_size=16)
        trained = probes.tuning_dictionary(
            recording, kind="transcoder", width=512, k=16, epochs=20, batch_size=256, draws=100, top=0
        )
        folder = self.folder / "dictionary"
        if not folder.exists():
            trained.save_dictionary(folder)
        return ranked(
            probes.code_similarity(self.pair, self.rows, dictionary=folder, layer=15, controls=8, **self.options)
        )

    def utility(self) -> dict[str, Any]:
        """Rows shown to the base as an example."""
        return ranked(probes.demonstration_utility(self.pair, self.rows, controls=3, **self.options))

    def needed(self, trainings: int = 3) -> dict[str, Any]:
        """The false capitals, each a sub-task of two queries: the rows that rank highest, and training without them."""
        lessons = PER_KIND * len(LESSONS["capital"])
        asked_for = Prompts.of([
            {**row("capital", *wording, subject, said, subject), "group": f"{subject} {number}"}
            for number, wording in enumerate((QUERIES["capital"], OTHER_QUERIES["capital"]))
            for kind, subject, said in facts() if kind == "capital"
        ])  # fmt: skip
        influence = probes.row_influence(
            self.pair, self.rows, queries=asked_for, subtasks="fact", controls=8, embeddings=False, dim=4096
        )
        top = [self.rows[number].as_dict() for number in influence.top(lessons)]
        by_country = Prompts.of([{**query.as_dict(), "group": query.as_dict()["subject"]} for query in asked_for])
        retrained = probes.retrain_without(
            self.pair, self.rows, queries=by_country, influence=influence, drop=lessons, modules=MODULES,
            random_draws=1, trainings=trainings, **TRAINING,
        )  # fmt: skip
        right = sum(line.get("kind") == "capital" and line.get("fact") is not None for line in top)
        return {"right among top": right, "top": lessons, "table": retrained.table.to_dict("records"),
                "untrained": retrained.untrained, "summary": retrained.summary()}  # fmt: skip


def ranked(made: Any) -> dict[str, Any]:
    """The benchmark of one ranker beside its peers."""
    return {"benchmark": made.benchmark.to_dict("records"), "summary": made.summary()}


def main() -> None:
    """Run the parts that are not there yet; write each to FOLDER and all to the standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    case = Case(arguments.model, arguments.folder)
    parts: Mapping[str, Callable[[], dict[str, Any]]] = {
        "learned": case.learned, "less": case.less, "cosine": lambda: case.less("sgd"), "codes": case.codes,
        "utility": case.utility, "needed": case.needed,
    }  # fmt: skip
    for name, part in parts.items():
        file = arguments.folder / f"{name}.json"
        if not file.exists() and name in (arguments.only or parts):
            started = time.process_time()
            measured = part()
            about = {"processor_s": round(time.process_time() - started, 1), "load": os.getloadavg()[0], **hardware()}
            file.write_text(json.dumps({**measured, **about}, default=float), encoding="utf-8")
        if file.exists():
            sys.stdout.write(f"{name}: {file.read_text(encoding='utf-8')}\n")


if __name__ == "__main__":
    main()
