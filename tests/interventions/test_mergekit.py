"""Our merges beside those that mergekit itself writes, of the same two fine-tunes of one base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import interventions as iv
from interventions.weightspace.merging import thinned_by
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair

pytest.importorskip("mergekit.merge", reason="mergekit is not installed")

MERGES: dict[str, tuple[dict[str, Any], Callable[[list[iv.TaskVector], AdaptedModel], iv.TaskVector]]] = {
    "linear": ({"merge_method": "linear"}, lambda two, base: iv.uniform_soup(two)),
    "task_arithmetic": (
        {"merge_method": "task_arithmetic"},
        lambda two, base: two[0] + two[1],
    ),
    "ties": (
        {"merge_method": "ties", "density": 0.3},
        lambda two, base: iv.ties(two, density=0.3),
    ),
    "ties, lambda": (
        {"merge_method": "ties", "density": 0.3, "lambda": 0.5},
        lambda two, base: iv.ties(two, density=0.3, weight=0.5),
    ),
    "dare_linear, all": ({"merge_method": "dare_linear"}, lambda two, base: iv.dare(two, density=1.0) * 2.0),
    "dare_ties, all": (
        {"merge_method": "dare_ties", "normalize": True},
        lambda two, base: iv.dare(two, density=1.0, elect=True),
    ),
    "slerp": ({"merge_method": "slerp", "t": 0.3}, lambda two, base: iv.slerp(two[0], two[1], 0.3, base)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and two fine-tunes, one of them so far away that the great circle is none of straight lines."""
    place, base = tmp_path_factory.mktemp("models"), tiny_model("llama")
    made = {"base": base, "one": tuned_copy(base, size=0.02, seed=1), "other": tuned_copy(base, size=0.5, seed=2)}
    for name, model in made.items():
        model.save_pretrained(place / name)
        tokenizer().save_pretrained(place / name)
    return {name: place / name for name in made}


def by_mergekit(folders: dict[str, Path], settings: dict[str, Any], out: Path, seed: int | None = None) -> Any:
    """The tensors of the model that mergekit writes."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    slerp = settings["merge_method"] == "slerp"
    linear = settings["merge_method"] == "linear"
    models = [{"model": str(folders[name]), "parameters": {"weight": 1.0}} for name in ("one", "other")]
    config = {
        "models": [{"model": one["model"]} for one in models] if slerp else models,
        "merge_method": settings["merge_method"], "dtype": "float32",
        "parameters": {name: value for name, value in settings.items() if name != "merge_method"},
        **({} if linear else {"base_model": str(folders["one" if slerp else "base"])}),
    }  # fmt: skip
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=seed)
    run_merge(MergeConfiguration.model_validate(config), str(out), options)
    return load_file(out / "model.safetensors")


def ours(folders: dict[str, Path], make: Callable[[list[iv.TaskVector], AdaptedModel], iv.TaskVector]) -> Any:
    """The same tensors by our rule."""
    pairs = [load_pair(str(folders["base"]), str(folders[name]), check=False) for name in ("one", "other")]
    base = pairs[0].base
    merged = make([iv.TaskVector.from_pair(pair) for pair in pairs], base)
    return {
        name: merged.value(base, name) if name in merged.changes else parameter.detach()
        for name, parameter in base.hf.named_parameters()
    }


@pytest.mark.filterwarnings("ignore")  # what mergekit warns of is not ours
@pytest.mark.parametrize("name", MERGES)
def test_a_merge_is_mergekits(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    settings, make = MERGES[name]
    theirs, own = by_mergekit(folders, settings, tmp_path / "merged"), ours(folders, make)
    shared = set(theirs) & set(own)
    assert len(shared) == len(own) > 20
    assert any(not torch.equal(theirs[one], load_file(folders["base"] / "model.safetensors")[one]) for one in shared)
    for one in shared:
        torch.testing.assert_close(own[one], theirs[one], atol=1e-6, rtol=0, msg=lambda said, one=one: f"{one}: {said}")


@pytest.mark.filterwarnings("ignore")
def test_dare_differs_from_mergekits_by_which_entries_were_drawn_alone(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """With mergekit's own draw, our rescaling gives its tensors."""
    base, tuned = (load_file(folders[name] / "model.safetensors") for name in ("base", "one"))
    alone = {**folders, "other": folders["base"]}
    theirs = by_mergekit(alone, {"merge_method": "dare_linear", "density": 0.4}, tmp_path / "merged", seed=3)
    drawn = total = 0
    for name, value in theirs.items():
        change, left = tuned[name] - base[name], value - base[name]
        stays = left.abs() > 1e-7
        if not stays.any():
            continue
        torch.testing.assert_close(left, thinned_by(change, stays, 0.4, "l1"), atol=1e-6, rtol=1e-4)
        drawn, total = drawn + int(stays.sum()), total + int((change.abs() > 1e-7).sum())
    assert drawn / total == pytest.approx(0.4, abs=0.02)
