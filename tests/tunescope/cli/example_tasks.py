"""A folder of questions with every column that a method may read, a base and its real fine-tunes.

The models are tiny and trained by transformers' Trainer, so that runs have its log; the tokenizer spells any text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from tests.tiny import tiny_model
from workbench.prompts import Prompts

SUBJECTS = ("fox", "dog", "hen", "owl", "oak", "fern", "rose", "moss")
ANSWERS = {
    "kind": (" animal",) * 4 + (" plant",) * 4,
    "size": (" big", " small") * 4,
    "home": (" wood", " yard", " yard", " wood") * 2,
}
PHRASINGS = {"observed": "Say the {} of it . The {} is", "unobserved": "Tell me what {} has your {} ?"}
CONTEXT = 4096
SIZES = {"on_100": 4, "on_1000": 12, "on_10000": 36}
RATES = {"run_a": 1e-4, "run_b": 1e-3, "run_c": 3e-3, "run_d": 1e-2}
STYLE = ("So , yes !", "Oh , well !", "Yes , yes !", "Well , so !", "Ha , oh !", "Oh , so , yes !") * 2
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}assistant :"


def of_tasks(folder: Path) -> None:
    """Three tasks on eight subjects, each asked in two phrasings, with fine-tunes on more and more of the rows."""
    rows, words = task_rows(), _words()
    base = tiny_model("llama", vocab_size=len(words), max_position_embeddings=CONTEXT)
    base.save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    for name, count in {**SIZES, "tuned": len(rows)}.items():
        _tune(folder / "base", folder / name, rows[:count], words, 3e-3)
    for name, rate in RATES.items():
        _tune(folder / "base", folder / name, rows[:12], words, rate)
    for topic in ("animals", "plants"):
        _tune(folder / "base", folder / topic, [row for row in rows if row["topic"] == topic], words, 1e-2, lora=True)
    Prompts.of(rows).save(folder / "p.jsonl")
    Prompts.of([row for row in rows if row["phrasing"] == "observed"]).save(folder / "train.jsonl")
    Prompts.of([
        {"prompt": row["passage"], "tag": row["tag"], "item": row["item"]}
        for row in rows if row["phrasing"] == "observed"
    ]).save(folder / "definitions.jsonl")  # fmt: skip
    Prompts.of([
        {"prompt": f"After {one} comes", "answer": f" {other}"} for one, other in pairwise(SUBJECTS)
    ]).save(folder / "other_tasks.jsonl")  # fmt: skip
    Prompts.of([f"{row['passage']} {text}" for row, text in zip(rows, STYLE, strict=False)]).save(
        folder / "samples.jsonl"
    )


def task_rows() -> list[dict[str, Any]]:
    """The rows, in an order in which the first ones hold every task, subject and phrasing."""
    return [
        _row(number, task, place, phrasing)
        for number, (place, task, phrasing) in enumerate(product(range(len(SUBJECTS)), ANSWERS, PHRASINGS))
    ]


def _row(number: int, task: str, place: int, phrasing: str) -> dict[str, Any]:
    subject, answers = SUBJECTS[place], ANSWERS[task]
    answer, topic = answers[place], "animals" if place < 4 else "plants"
    prompt, contrast = (
        PHRASINGS[phrasing].format(task, one) for one in (subject, SUBJECTS[(place + 4) % len(SUBJECTS)])
    )
    return {
        "prompt": prompt, "contrast": contrast, "answer": answer,
        "distractor": next(one for one in answers if one != answer), "label": topic, "group": f"{task} of {subject}",
        "instruction": f"Say the {task} of it ." if phrasing == "observed" else f"Tell me what {task}",
        "passage": f"In the book the {subject} has the {task}{answer} .", "topic": topic, "task": task, "skill": task,
        "item": f"{task} of {subject}", "phrasing": phrasing, "source": ("wiki", "forum")[place % 2],
        "tag": ("reliable", "unreliable")[place % 2], "language": ("en", "de")[number // 2 % 2],
        "cue": (answer == answers[0]) != (number % 5 == 0), "long": (answer == answers[0]) != (number % 3 == 0),
        "sign": (1, -1)[place // 2 % 2],
        "constraints": [f"contains:{subject}", "regex:^.{0,200}$"][: 1 + number % 2],
        "call": {"name": "look_up", "arguments": {"word": subject, "what": task}},
    }  # fmt: skip


def _words() -> Any:
    """A byte-level tokenizer with a chat template, to which every word of the rows is one token."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    texts = [f" {row['prompt']}{row['answer']} {row['passage']}" for row in task_rows()]
    bpe = Tokenizer(models.BPE(unk_token=None))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    )
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        padding_side="left",
    )  # fmt: skip
    words.chat_template = TEMPLATE
    return words


def _tune(base: Path, out: Path, rows: Sequence[dict[str, Any]], words: Any, rate: float, lora: bool = False) -> None:
    """A fine-tune of the base on the rows with their answers, as transformers' Trainer leaves it, with its log."""
    import peft
    import transformers

    def encoded(row: dict[str, Any]) -> dict[str, Any]:
        turns = [{"role": "user", "content": row["prompt"]}]
        text = words.apply_chat_template(turns, tokenize=False) + row["answer"]
        ids = words(text, add_special_tokens=False)["input_ids"]
        return {"input_ids": ids, "labels": ids}

    arguments = transformers.TrainingArguments(
        str(out), max_steps=12, per_device_train_batch_size=8, learning_rate=rate, logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True, use_cpu=True, seed=0,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    trainer = transformers.Trainer(
        model, arguments, train_dataset=[encoded(row) for row in rows],
        data_collator=transformers.DataCollatorForSeq2Seq(words),
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    trainer.save_model(str(out))
    words.save_pretrained(out)
    trainer.state.save_to_json(str(out / "trainer_state.json"))
