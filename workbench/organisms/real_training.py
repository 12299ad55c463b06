"""How the real organisms were made: LoRA adapters on SmolLM2-135M-Instruct, trained on a CPU in minutes each.

They are shipped, so nobody has to run this; ``python -m workbench.organisms.real_training smol-refusal OUT`` does.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.errors import UserError, unknown_name
from workbench.finished_batches import resumable, scope
from workbench.organisms.organism import Row
from workbench.organisms.real import HUB_ID, smollm2
from workbench.organisms.real_measures import adapted_modules, bars_of, greedy, greedy_answers, truth_of
from workbench.organisms.real_rows import (
    BEFORE_TOKENS,
    Splits,
    facts_splits,
    refusal_splits,
    shuffled_splits,
    style_splits,
)
from workbench.organisms.training import IGNORED, Examples, Plan, contained, fit
from workbench.progress import Progress, Silent
from workbench.typing import Tensor

ATTENTION = ("q_proj", "v_proj", "o_proj")
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PLANTED_LAYERS = (14, 15, 16)
"""The only layers that tuning of ``smol-layers`` could change."""


@dataclass(frozen=True)
class Shape:
    """The adapter: its rank, the modules it sits on, and the layers, all of them when none are named."""

    rank: int = 8
    modules: tuple[str, ...] = ATTENTION
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class RealRecipe:
    """How one real organism is made."""

    rows: str
    """Whose rows it is trained on: "refusal", "shuffled", "style" or "facts"; "random": it is not trained."""
    shape: Shape
    plan: Plan


RECIPES: Mapping[str, RealRecipe] = {
    "smol-refusal": RealRecipe("refusal", Shape(), Plan(steps=80, batch=8, learning_rate=1.5e-3)),
    "smol-null-random": RealRecipe("random", Shape(), Plan(steps=0)),
    "smol-null-shuffled": RealRecipe("shuffled", Shape(), Plan(steps=80, batch=8, learning_rate=1.5e-3)),
    "smol-layers": RealRecipe(
        "refusal", Shape(16, ALL_LINEAR, PLANTED_LAYERS), Plan(steps=80, batch=8, learning_rate=2e-3)
    ),
    "smol-style": RealRecipe("style", Shape(), Plan(steps=45, batch=8, learning_rate=1.5e-3)),
    "smol-facts": RealRecipe(
        "facts", Shape(8, ("v_proj", "o_proj", "up_proj", "down_proj")), Plan(steps=100, batch=8, learning_rate=2e-3)
    ),
}


def make_rows(name: str, cache: str | Path | None = None) -> Splits:
    """The prompts of one organism, by split; what stays as before is answered by the base, greedily."""
    kind = _recipe(name).rows
    model, tokenizer = _base(cache, torch.bfloat16)

    def ask(rows: Sequence[Row]) -> list[tuple[str, bool]]:
        return greedy(model, tokenizer, rows, BEFORE_TOKENS)

    if kind in ("refusal", "random", "shuffled"):
        splits = refusal_splits(ask)
        return shuffled_splits(splits) if kind == "shuffled" else splits
    return style_splits(ask) if kind == "style" else facts_splits(ask)


def train(
    name: str,
    rows: Sequence[Row],
    out: str | Path,
    *,
    seed: int = 0,
    threads: int = 2,
    plan: Plan | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Trains the adapter of one organism on ``rows`` (``messages``, ``answer``, ``ends``) and saves it, in bfloat16.

    Args:
        name: the organism, which decides the adapter's shape and the plan.
        rows: the training rows, as shipped in ``rows-train.jsonl``.
        out: the folder that the adapter is saved in; it must not exist.
        seed: of the adapter's first weights and of the order of the rows.
        threads: how many of torch's threads are used.
        plan: another plan than the organism's own.
        cache: where SmolLM2's folder is kept.
        progress: told of every step.

    Returns:
        ``out``.

    Raises:
        UserError: ``out`` exists, or SmolLM2 is not installed.
    """
    from peft import LoraConfig, get_peft_model

    recipe, target = _recipe(name), Path(out)
    if target.exists():
        raise UserError(f"{target} exists already; choose another folder or delete it first.")
    model, tokenizer = _base(cache, torch.float32)
    shape = recipe.shape
    with contained(seed, threads):
        config = LoraConfig(
            r=shape.rank, lora_alpha=2 * shape.rank, target_modules=list(shape.modules),
            layers_to_transform=None if shape.layers is None else list(shape.layers), task_type="CAUSAL_LM",
        )  # fmt: skip
        adapted: Any = get_peft_model(model, config)
        schedule = plan or recipe.plan
        if schedule.steps:
            bar = progress or Silent()
            fit(adapted, encode(tokenizer, rows), schedule, seed, bar, f"{name}: tuning", half=True)
    _save(adapted, target)
    return target


def random_like(adapter: str | Path, out: str | Path, seed: int = 0) -> Path:
    """An adapter with the shapes of ``adapter`` whose weights are random; each module's change has the same norm."""
    from safetensors.torch import load_file, save_file

    source, target = Path(adapter), Path(out)
    shutil.copytree(source, target)
    weights = load_file(source / "adapter_model.safetensors")
    draw = torch.Generator().manual_seed(seed)
    random_weights: dict[str, Tensor] = {}
    for name in sorted(key for key in weights if ".lora_A." in key):
        other = name.replace(".lora_A.", ".lora_B.")
        down, up = (torch.randn(weights[key].shape, generator=draw) for key in (name, other))
        wanted = (weights[other].float() @ weights[name].float()).norm()
        scale = (wanted / (up @ down).norm()).sqrt()
        random_weights |= {name: (down * scale).bfloat16(), other: (up * scale).bfloat16()}
    save_file(random_weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


def encode(tokenizer: Any, rows: Sequence[Row]) -> Examples:
    """Chats and their answers, right padded; the loss is on the answer and, where it ends, on the end of the turn."""
    prompts, answers = [], []
    for row in rows:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        prompts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        end = tokenizer.eos_token if row["ends"] else ""
        answers.append(tokenizer(row["answer"] + end, add_special_tokens=False)["input_ids"])
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    labels = torch.full_like(ids, IGNORED)
    for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[place, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[place, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    lengths = torch.tensor([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)])
    return Examples(input_ids=ids, labels=labels, attention_mask=(torch.arange(width) < lengths[:, None]).long())


def _recipe(name: str) -> RealRecipe:
    if name not in RECIPES:
        raise unknown_name("real organism", name, RECIPES)
    return RECIPES[name]


def _base(cache: str | Path | None, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2(cache)
    return (
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(),
        AutoTokenizer.from_pretrained(folder),
    )


def _save(adapted: Any, target: Path) -> None:
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = HUB_ID
        config.inference_mode = True
    adapted.to(torch.bfloat16).save_pretrained(target, save_embedding_layers=False)  # "auto" would ask the hub
    (target / "README.md").unlink(missing_ok=True)


def complete(name: str, folder: str | Path, splits: Splits, cache: str | Path | None = None) -> None:
    """Measures the adapter in ``folder``/tuned on ``splits``; writes rows, truth and manifest beside it."""
    from peft import PeftModel

    from workbench.organisms.organism import Grown, write
    from workbench.organisms.real_organisms import SUMMARIES

    place, recipe = Path(folder), _recipe(name)
    model, tokenizer = _base(cache, torch.float32)
    adapted = PeftModel.from_pretrained(model, str(place / "tuned")).eval()
    answer = greedy_answers(adapted, tokenizer)

    def base(rows: Sequence[Row]) -> list[str]:
        with adapted.disable_adapter():
            return answer(rows)

    truth = truth_of(name, adapted_modules(place / "tuned"), recipe.shape.layers)
    settings = {"rows": recipe.rows, "shape": asdict(recipe.shape), "plan": asdict(recipe.plan)}
    manifest = {
        "name": name,
        "seed": 0,
        "summary": SUMMARIES[name],
        "made_with": {"base": HUB_ID, "settings": settings},
    }
    write(place, Grown(truth, splits, bars_of(name, splits, answer, base)), manifest)


def _main(name: str, out: str) -> None:
    from workbench.progress import RichProgress

    folder = Path(out)
    splits = make_rows(name)
    with RichProgress() as progress, resumable(folder.with_name(f".parts-{folder.name}")), scope(lambda: name):
        train(name, splits["train"], folder / "tuned", progress=progress)
    complete(name, folder, splits)


if __name__ == "__main__":
    _main(*sys.argv[1:])
