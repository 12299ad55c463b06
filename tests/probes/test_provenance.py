"""Provenance: from it alone (with the models and prompts it names by hash) every probe's call can be made again.

Each probe is called with every option at another value than its default; the provenance must hold all of them, under
the names of the call. A new probe needs calls here, and a new option a value.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

import probes
from probes.asked import APART, LONG, asked, plain
from probes.concepts.dictionary import Dictionary
from probes.desiderata.masking import MaskingOptions
from probes.directions.find import DirectionOptions
from probes.experts.mapping import MapOptions
from probes.experts.switching import SwitchOptions
from probes.grafting.search import Settings
from probes.knob.find import Setup
from probes.knob.subspace import Training
from probes.needles.heads import RetrievalOptions
from probes.needles.masking import MaskOptions
from probes.needles.trials import contents
from probes.patches.patching import PatchOptions
from probes.paths.circuits import CircuitOptions
from probes.paths.cross_model import CrossOptions
from probes.paths.finding import PathOptions
from probes.results import ProbeResult, Provenance
from probes.selection import SelectionOptions
from tests.probes.copier import copier
from tests.probes.grafting.test_graft import ANIMALS, full_pair
from tests.probes.grafting.test_graft import task as graft_task
from tests.probes.paths.planted import repeated_pairs
from tests.probes.paths.test_circuits import Planted
from tests.probes.planted_knob import planted_knob
from tests.probes.test_concepts import folder
from tests.probes.test_retrieval_heads import trials
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.behaviour.scorers import behaviour
from workbench.models.pair import ModelPair, load_pair
from workbench.organisms.vocabulary import word_tokenizer
from workbench.prompts import Prompts
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording
from workbench.results import prompts_hash

MODELS = ("base", "tuned", "pair", "subject")
DATA = ("recording", "prompts", "trials")
"""Arguments that are named by hash, in fields of the provenance of their own."""
RUN = {"batch_size": 3, "max_tokens": 64, "draws": 50, "seed": 3}


@dataclass(frozen=True)
class Calls:
    """Calls that between them give every argument another value than its default; ``options`` is what the probe's
    ``**options`` are read into."""

    given: list[dict[str, Any]]
    options: type | None = None

    def arguments(self, probe: Callable[..., Any]) -> dict[str, Any]:
        """The arguments and options of ``probe`` with their defaults, without those that change no number."""
        found: dict[str, Any] = {}
        for one in inspect.signature(probe).parameters.values():
            if one.kind is not inspect.Parameter.VAR_KEYWORD:
                found[one.name] = one.default
                continue
            assert self.options is not None, f"say what the {one.name} of {probe.__name__} are read into"
            found |= {field.name: field.default for field in dataclasses.fields(self.options)}
        return {name: default for name, default in found.items() if name not in ("progress", "device")}


def pair(family: str = "llama") -> ModelPair:
    base = tiny_model(family)
    return load_pair(base, tuned_copy(base, size=0.1), tokenizer=tokenizer(), check=False)


def rows(n: int = 8, first: str = "the") -> Prompts:
    """Pairs of prompts in groups, of one length."""
    return Prompts.of([
        {"prompt": f"{first} {'xyzq'[i % 4]} {'abcd'[i // 4]}", "contrast": f"{first} {'qxyz'[i % 4]} {'abcd'[i // 4]}",
         "answer": " fox", "distractor": " dog", "label": i % 2 == 0, "group": f"g{i // 2}"}
        for i in range(n)
    ])  # fmt: skip


def recording(site: str, **options: Any) -> Recording:
    return record(pair(), rows(12), [site], positions="last", **options)


def shouts(text: str, _row: Any) -> bool:
    return text.isupper()


def of_activation_delta() -> Calls:
    given = {"by_position": True, "components": 2, "model": pair().tuned, "tokens": "all", "seed": 3}
    return Calls([{"recording": recording("resid_post"), **given}])


def of_against_nulls() -> Calls:
    """The options of the probe itself go through."""

    @dataclass(frozen=True)
    class LensOptions:
        top: int = 5

    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False))
    both = load_pair(model.get_base_model(), model.eval(), tokenizer=tokenizer(), check=False)
    given = {"probe": probes.logit_lens, "prompts": rows(), "nulls": 20, "null": "shuffled", "null_seed": 4, "top": 2}
    return Calls([{"pair": both, **given}], LensOptions)


def of_answers() -> Calls:
    return Calls([{"pair": pair(), "prompts": rows(), "max_new_tokens": 3, "batch_size": 3}])


def of_audit() -> Calls:
    sets = {"questions": rows(), "texts": rows()}
    return Calls([{"pair": pair(), **sets, "max_new_tokens": 3, "variations": 2, "batch_size": 3, "seed": 5}])


def of_circuit() -> Calls:
    given = {
        "heads": {"after": ["L0H0"], "last": ["L1H0"]}, "metric": "prob", "reference": repeated_pairs(6, 9),
        "controls": 11, "parts": 2, "minimality": True, "redundant": 0.5, "threshold": 0.02, **RUN,
    }  # fmt: skip
    return Calls([{"subject": Planted(), "prompts": repeated_pairs(6), **given}], CircuitOptions)


def of_cmap() -> Calls:
    given = {"heads": {"last": ["L1H0"]}, "metric": "prob", "controls": 11, **RUN}
    return Calls([{"pair": Planted(), "prompts": repeated_pairs(6), **given}], CrossOptions)


def of_compare() -> Calls:
    table = pd.DataFrame({"layer": [0, 1, 2], "score": [3.0, 2.0, 1.0]})
    maps = {"first": table, "second": probes.logit_lens(pair(), rows())}
    return Calls([{**maps, "ks": [1, 2], "seed": 3}])


def of_component_masking() -> Calls:
    given = {
        "position": -2, "heads": ["L0H0", "L1H2"], "penalties": [0.02], "epochs": 1, "learning_rate": 0.2,
        "controls": 11, **RUN,
    }  # fmt: skip
    return Calls([{"subject": pair(), "desiderata": {"one": rows(16)}, **given}], MaskingOptions)


def of_concept_directions() -> Calls:
    given = {
        "layer": 0,
        "k": 2,
        "labels": list("ab" * 6),
        "model": pair().tuned,
        "examples": 1,
        "seed": 3,
        "tokens": "all",
    }
    with TemporaryDirectory() as place:
        dictionary = Dictionary.load(folder(Path(place)))
    recorded = recording("resid_post")
    return Calls([
        {"recording": recorded, "method": "labels-mean", **given},
        {"recording": recorded, "method": "sae", "dictionary": dictionary},
    ])  # fmt: skip


def of_contrastive_generations() -> Calls:
    given = {
        "samples": 2, "plausibility": 0.2, "temperature": 0.7, "behaviour": "contains:fox", "max_new_tokens": 3,
        "batch_size": 3, "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


def of_expert_map() -> Calls:
    given = {
        "labels": list("aabb" * 2), "target": "a", "phase": "decode", "score": "token_rate", "reference": None,
        "exclude": "special", "test": "permutation", "responses": [" fox"] * 8, "max_new_tokens": 3, "top": 4,
        "draws": 20, "batch_size": 4, "seed": 3,
    }  # fmt: skip
    last = {"labels": list("aabb" * 2), "positions": "last", "draws": 20}
    models = {"subject": pair("qwen3moe"), "prompts": rows()}
    return Calls([{**models, **given}, {**models, **last}], MapOptions)


def of_find_direction() -> Calls:
    two = load_pair(tiny_model("llama", 0), tiny_model("llama", 1), tokenizer=tokenizer(), check=False)
    asked_of = [
        {"prompt": f"the {word} {number}", "label": word, "group": str(number)}
        for word in ("fox", "dog") for number in range(10)
    ]  # fmt: skip
    foxes = [row["prompt"] for row in asked_of[:10]]
    known = set(zip(foxes, two.tuned.generate(foxes, max_new_tokens=3), strict=True))
    shown = behaviour(lambda response, row: (row.prompt, response) in known, "fox answers", share=True)
    given = {"neutral": ["the quick dog"], "limit": 8, "max_new_tokens": 3, "candidates": 1, "controls": 0,
             "batch_size": 4, "seed": 3}  # fmt: skip
    return Calls([{"pair": two, "prompts": Prompts.of(asked_of), "behaviour": shown, **given}], DirectionOptions)


def of_find_knob() -> Calls:
    knob = planted_knob(20)
    given = {
        "layers": [0], "training": Training(steps=40, batch_size=8, lr=0.1), "setup": Setup(draws=2, values=3),
        "others": {"again": knob.pair.base}, "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": knob.pair, "prompts": Prompts.of(knob.prompts), **given}])


def of_graft() -> Calls:
    data = graft_task("quick", ANIMALS)
    given = {
        "method": "adaptive", "level": "rows", "sparsity": 0.05, "ood": graft_task("lazy", ANIMALS, seed=5),
        "epochs": 2, "start": "empty", "offset": 2.0, "lr": 0.4, "penalty": 0.02, "sparsities": [0.1, 1.0],
        "draws": 11, "batch_size": 16, "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": full_pair(data), "prompts": data, **given}], Settings)


def of_head_probe() -> Calls:
    given = {
        "labels": list("aabb" * 3), "role": "base", "groups": [f"h{i // 2}" for i in range(12)], "folds": 2,
        "ridge": 2.0, "draws": 3, "seed": 3,
    }  # fmt: skip
    return Calls([{"recording": recording("z"), **given}])


def of_head_selection() -> Calls:
    given = {
        "penalty": 1e-2, "epochs": 1, "learning_rate": 1e-2, "batch_size": 4, "end": False, "resamples": 2,
        "holdout": 0.5, "heads": 2, "other": rows(4, "a"), "controls": 11, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": rows(), **given}], SelectionOptions)


def of_head_words() -> Calls:
    return Calls([{"pair": pair(), "prompts": rows(), "layer": 1, "head": 2, "top": 3, "seed": 3}])


def of_logit_lens() -> Calls:
    given = {"layers": [0, 2], "positions": "last", "top": 2, "shown": 1, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


def of_mask_heads() -> Calls:
    given = {"heads": ["L1H0"], "counts": [1], "how": "mean", "max_new_tokens": 5, "controls": 3, "seed": 3}
    return Calls([{"subject": copier(), "trials": trials(4), **given}], MaskOptions)


def of_mask_overlap() -> Calls:
    data = graft_task("quick", ANIMALS)
    one, other = (
        probes.graft(full_pair(data), data, method=how, sparsity=0.02, sparsities=[1.0], draws=10)
        for how in ("movement", "first_order")
    )
    return Calls([{"first": one, "second": other, "null": [one]}])


def of_patching() -> Calls:
    models, common = {"subject": pair(), "prompts": rows()}, {"normalise": False, **RUN}
    sites = {
        "sites": ["attn_out"], "source": "base", "target": "tuned", "what": "z", "metric": "prob",
        "positions": "last", "layers": [0, 1], "method": "ig", "confirm": 0.5, "ig_steps": 2, "controls": 3,
    }  # fmt: skip
    heads = {"inputs": "target", "only_correct": True, "together": 2}
    return Calls([{**models, **common, **sites}, {**models, **common, **heads}], PatchOptions)


def of_needle_search() -> Calls:
    """A copier whose tokenizer has a word for every word of the haystack, needle and question."""
    haystack, needle = "ant bee . cat dog . eel fox . gnu hen . " * 4, "answer zebra hides here ."
    template = " q {question} answer"
    words = word_tokenizer([haystack, needle, template, "what ?"])
    words.eos_token = "."
    place = Path(mkdtemp())
    (place / "book.txt").write_text(haystack)
    given = {
        "haystack": str(place / "book.txt"), "needles": [{"question": "what ?", "text": needle}],
        "lengths": [16], "depths": [0.5], "template": template, "max_new_tokens": 5, "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": copier(len(words), 96, tokenizer=words), **given}])


def of_path_patching() -> Calls:
    given = {
        "receivers": ["L2H1"], "through": "k", "position": -2, "source": "tuned", "target": "base",
        "metric": "logit_diff", "senders": ["L0H0", "L1H3"], "layers": [0], "freeze_mlps": True,
        "only_correct": False, "controls": 3, **RUN,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": rows(), **given}], PathOptions)


def of_retrieval_heads() -> Calls:
    given = {"max_new_tokens": 5, "keep_above": 0.2, "threshold": 0.3, "decoys": 3, "seed": 3}
    return Calls([{"subject": copier(), "trials": trials(4), **given}], RetrievalOptions)


def saved(*models: Any) -> list[str]:
    """Folders of models."""
    places = [mkdtemp() for _ in models]
    for place, model in zip(places, models, strict=True):
        model.save_pretrained(place)
    return places


def of_series_profile() -> Calls:
    both, other = pair(), tuned_copy(tiny_model("llama"), seed=5, size=0.1)
    given = {"checkpoints": saved(other, both.base.hf), "scores": [0.1, 0.5, 0.2], "draws": 50, "seed": 3}
    return Calls([{"base": both.base, "tuned": both.tuned, **given}])


def of_series_curve() -> Calls:
    other = tuned_copy(tiny_model("llama"), seed=5, size=0.1)
    given = {"checkpoints": saved(other), "draws": 50, "batch_size": 3, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


def of_merge_test() -> Calls:
    other = tuned_copy(tiny_model("llama"), seed=5, size=0.1)
    given = {
        "checkpoints": saved(other), "rules": ["stock", "dare"], "density": 0.5, "points": 3, "batch_size": 3,
        "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": pair(), "prompts": rows(16), **given}])


def of_selection_trial() -> Calls:
    given = {
        "scores": ["fisher", "half_reset"],
        "share": 0.2,
        "retain": rows(8, "a"),
        "draws": 2,
        "batch_size": 3,
        "seed": 3,
    }
    return Calls([{"pair": pair(), "prompts": rows(16), **given}])


def of_update_anatomy() -> Calls:
    both = pair()
    return Calls([{"base": both.base, "tuned": both.tuned, "k": 5, "rank": 3, "share": 0.1, "draws": 3, "seed": 3}])


def of_lora_likeness() -> Calls:
    from peft import LoraConfig, get_peft_model

    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(
            get_peft_model(tiny_model("llama"), LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
        )
    both = load_pair(tiny_model("llama"), made[0], tokenizer=tokenizer(), check=False)
    other, initial = saved(made[1], made[1])
    given = {"checkpoints": [other], "initial": initial, "draws": 5, "seed": 3}
    return Calls([{"base": both.base, "tuned": both.tuned, **given}])


def of_sparse_composition() -> Calls:
    (other,) = saved(tuned_copy(tiny_model("llama"), seed=5, size=0.1))
    given = {"checkpoints": [other], "densities": [0.2, 0.5], "batch_size": 3, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


def of_mask_churn() -> Calls:
    both = pair()
    (other,) = saved(tuned_copy(tiny_model("llama"), seed=5, size=0.1))
    return Calls([{"base": both.base, "tuned": both.tuned, "checkpoints": [other], "share": 0.05}])


def of_learned_scaling() -> Calls:
    (other,) = saved(tuned_copy(tiny_model("llama"), seed=5, size=0.1))
    given = {"checkpoints": [other], "epochs": 1, "lr": 0.2, "batch_size": 4, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(16), **given}])


def of_adapter_panel() -> Calls:
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(tiny_model("llama"), LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    both = load_pair(tiny_model("llama"), tuned, tokenizer=tokenizer(), check=False)
    return Calls([{"pair": both, "prompts": rows(), "ablate": False, "seed": 3}])


def of_switching_curve() -> Calls:
    given = {
        "behaviour": shouts, "ranking": ["L0E1", "L1E2"], "counts": [1], "mode": "drop", "max_new_tokens": 1,
        "controls": 3, "draws": 20, "batch_size": 4, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair("qwen3moe"), "prompts": rows(4), **given}], SwitchOptions)


def of_probability_movement() -> Calls:
    return Calls([{"pair": pair(), "prompts": rows(), "bins": 2, "batch_size": 3, "seed": 3}])


def of_token_shift() -> Calls:
    given = {"base_prompts": rows(8, "a"), "max_new_tokens": 2, "batch_size": 3, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


def of_weight_delta() -> Calls:
    both = pair()
    return Calls([{"base": both.base, "tuned": both.tuned, "k": 3, "exact": True}])


def returns_a_result(name: str) -> bool:
    """Whether the public function ``name`` says that it returns a probe's result."""
    function = getattr(probes, name)
    said = getattr(function, "__annotations__", {}).get("return") if inspect.isfunction(function) else None
    found = getattr(sys.modules[function.__module__], said, None) if isinstance(said, str) else said
    return isinstance(found, type) and issubclass(found, ProbeResult)


def left_out(probe: Callable[..., Any], calls: Calls) -> list[str]:
    """What the provenance of the results does not hold, and what no call gives another value than its default."""
    arguments, missing, tried = calls.arguments(probe), [], set()
    for given in calls.given:
        made = probe(**given).provenance
        json.dumps(dataclasses.asdict(made))
        missing += [f"{name} of {sorted(given)}" for name, value in given.items() if not held(made, name, value)]
        tried |= {name for name, value in given.items() if plain(value) != plain(arguments[name])}
    return [*missing, *(f"{name}: never tried" for name in arguments if name not in tried)]


def held(made: Provenance, name: str, value: Any) -> bool:
    if name in MODELS:
        models = [getattr(value, role) for role in ("base", "tuned") if hasattr(value, role)] or [value]
        known = [one["hash"] for one in made.models.values()]
        return any(model.identity.hash in known for model in models)
    if name == "recording":
        where = {key: value.config[key] for key in ("sites", "positions")}
        return made.prompts == value.config["prompts"] and where.items() <= made.settings["recording"].items()
    if name == "trials":
        return made.prompts == prompts_hash(contents(value))
    if name == "prompts":  # where only some of them could be used, those are the result's prompts
        return value.hash in (made.prompts, made.settings.get("prompts"))
    if name == "seed":
        return made.seed == value
    return name in made.settings and made.settings[name] == plain(value)


def test_every_probe_has_its_calls_here() -> None:
    named = {name.removeprefix("of_") for name, found in globals().items() if name.startswith("of_")}
    assert named == {name for name in probes.__all__ if returns_a_result(name)}


@pytest.mark.parametrize("name", [name for name in probes.__all__ if returns_a_result(name)])
def test_every_argument_is_in_the_provenance(name: str) -> None:
    assert left_out(getattr(probes, name), globals()[f"of_{name}"]()) == []


@dataclass(frozen=True)
class Options:
    kept: int = 1
    forgotten: int = 2
    progress: Any = None


def test_a_probe_that_forgets_an_option_is_told_so() -> None:
    def toy(prompts: Prompts, seed: int = 0, **options: Any) -> Any:
        chosen = Options(**options)
        return SimpleNamespace(provenance=Provenance.of("toy", {}, prompts, seed=0, settings={"kept": chosen.kept}))

    given = {"prompts": rows(2), "seed": 3, "kept": 5, "forgotten": 7}
    told = " ".join(left_out(toy, Calls([given], Options)))
    assert "seed of" in told and "forgotten of" in told and "kept of" not in told
    assert "kept: never tried" in left_out(toy, Calls([{**given, "kept": 1}], Options))
    with pytest.raises(AssertionError, match="are read into"):
        left_out(toy, Calls([given]))


def test_values_become_plain() -> None:
    assert asked(Options(), more=(1, 2.5, None)) == {"kept": 1, "forgotten": 2, "more": [1, 2.5, None]}
    assert set(APART) == {"seed", "progress"}
    assert plain(slice(1, None)) == "slice(1, None, None)" and plain(np.arange(2)) == [0, 1]
    assert plain({1: np.float64(0.5)}) == {"1": 0.5} and plain(shouts) == f"function {__name__}.shouts"
    assert plain(rows(2)) == rows(2).hash and plain(rows(2)) != plain(rows(3))
    assert plain(Training(steps=7))["steps"] == 7 and plain(Setup())["thresholds"]["reached"] == 0.85
    long = [str(one) for one in range(LONG + 1)]
    assert plain(long[1:]) == long[1:] and plain(long) == prompts_hash(long)
    tables = [pd.DataFrame({"score": [1.0, value]}) for value in (2.0, 3.0)]
    assert plain(tables[0]) == plain(tables[0].copy()) != plain(tables[1])
    lens = probes.logit_lens(pair(), rows(), top=2)
    said: Mapping[str, Any] = plain(lens)
    assert said["probe"] == "logit_lens" and said["settings"]["top"] == 2 and said["prompts"] == rows().hash
