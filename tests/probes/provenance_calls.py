"""Calls of the probes, every option at another value than its default (`tests.probes.provenance`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model

import probes
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
from probes.patches.patching import PatchOptions
from probes.paths.circuits import CircuitOptions
from probes.paths.cross_model import CrossOptions
from probes.paths.finding import PathOptions
from probes.selection import SelectionOptions
from tests.probes.copier import copier
from tests.probes.grafting.test_graft import ANIMALS, full_pair
from tests.probes.grafting.test_graft import task as graft_task
from tests.probes.paths.planted import repeated_pairs
from tests.probes.paths.test_circuits import Planted
from tests.probes.planted_knob import planted_knob
from tests.probes.provenance import RUN, Calls, pair, recording, rows
from tests.probes.test_concepts import folder
from tests.probes.test_retrieval_heads import trials
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.behaviour.scorers import behaviour
from workbench.models.pair import load_pair
from workbench.organisms.vocabulary import word_tokenizer
from workbench.prompts import Prompts


def shouts(text: str, _row: Any) -> bool:
    return text.isupper()


def calls_of_activation_delta() -> Calls:
    given = {"by_position": True, "components": 2, "model": pair().tuned, "tokens": "all", "seed": 3}
    return Calls([{"recording": recording("resid_post"), **given}])


def calls_of_against_nulls() -> Calls:
    """The options of the probe itself go through."""

    @dataclass(frozen=True)
    class LensOptions:
        top: int = 5

    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False))
    both = load_pair(model.get_base_model(), model.eval(), tokenizer=tokenizer(), check=False)
    given = {"probe": probes.logit_lens, "prompts": rows(), "nulls": 20, "null": "shuffled", "null_seed": 4, "top": 2}
    return Calls([{"pair": both, **given}], LensOptions)


def calls_of_answers() -> Calls:
    return Calls([{"pair": pair(), "prompts": rows(), "max_new_tokens": 3, "batch_size": 3}])


def calls_of_audit() -> Calls:
    counts = {"max_new_tokens": 3, "variations": 2, "mined": 3, "draws": 4, "batch_size": 3, "seed": 5}
    return Calls([{"pair": pair(), "questions": rows(), "texts": rows(), **counts}])


def calls_of_circuit() -> Calls:
    given = {
        "heads": {"after": ["L0H0"], "last": ["L1H0"]}, "metric": "prob", "reference": repeated_pairs(6, 9),
        "controls": 11, "parts": 2, "minimality": True, "redundant": 0.5, "threshold": 0.02, **RUN,
    }  # fmt: skip
    return Calls([{"subject": Planted(), "prompts": repeated_pairs(6), **given}], CircuitOptions)


def calls_of_cmap() -> Calls:
    given = {"heads": {"last": ["L1H0"]}, "metric": "prob", "controls": 11, **RUN}
    return Calls([{"pair": Planted(), "prompts": repeated_pairs(6), **given}], CrossOptions)


def calls_of_compare() -> Calls:
    table = pd.DataFrame({"layer": [0, 1, 2], "score": [3.0, 2.0, 1.0]})
    maps = {"first": table, "second": probes.logit_lens(pair(), rows())}
    return Calls([{**maps, "ks": [1, 2], "seed": 3}])


def calls_of_component_masking() -> Calls:
    given = {
        "position": -2, "heads": ["L0H0", "L1H2"], "penalties": [0.02], "epochs": 1, "learning_rate": 0.2,
        "controls": 11, **RUN,
    }  # fmt: skip
    return Calls([{"subject": pair(), "desiderata": {"one": rows(16)}, **given}], MaskingOptions)


def calls_of_concept_directions() -> Calls:
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


def calls_of_contrastive_generations() -> Calls:
    given = {
        "samples": 2, "plausibility": 0.2, "temperature": 0.7, "behaviour": "contains:fox", "max_new_tokens": 3,
        "batch_size": 3, "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


def calls_of_expert_map() -> Calls:
    given = {
        "labels": list("aabb" * 4), "target": "a", "phase": "decode", "score": "token_rate", "reference": None,
        "exclude": "special", "test": "permutation", "responses": [" fox"] * 16, "max_new_tokens": 3, "top": 4,
        "draws": 20, "batch_size": 4, "seed": 3,
    }  # fmt: skip
    last = {"labels": list("aabb" * 4), "positions": "last", "draws": 20}
    models = {"subject": pair("qwen3moe"), "prompts": rows()}
    return Calls([{**models, **given}, {**models, **last}], MapOptions)


def calls_of_find_direction() -> Calls:
    two = load_pair(tiny_model("llama", 0), tiny_model("llama", 1), tokenizer=tokenizer(), check=False)
    asked_of = [
        {"prompt": f"the {word} {number}", "label": word, "group": str(number)}
        for word in ("fox", "dog") for number in range(10)
    ]  # fmt: skip
    foxes = [row["prompt"] for row in asked_of[:10]]
    known = set(zip(foxes, two.tuned.generate(foxes, max_new_tokens=3), strict=True))
    shown = behaviour(lambda response, row: (row.prompt, response) in known, "fox answers", share=True)
    given = {"neutral": ["the quick dog"], "limit": 8, "max_new_tokens": 3, "candidates": 1, "controls": 0,
             "allowed_rise": 0.05, "batch_size": 4, "seed": 3}  # fmt: skip
    return Calls([{"pair": two, "prompts": Prompts.of(asked_of), "behaviour": shown, **given}], DirectionOptions)


def calls_of_find_knob() -> Calls:
    knob = planted_knob(20)
    given = {
        "layers": [0], "training": Training(steps=40, batch_size=8, lr=0.1), "setup": Setup(draws=2, values=3),
        "others": {"again": knob.pair.base}, "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": knob.pair, "prompts": Prompts.of(knob.prompts), **given}])


def calls_of_graft() -> Calls:
    data = graft_task("quick", ANIMALS)
    given = {
        "method": "optimised", "level": "rows", "sparsity": 0.05, "ood": graft_task("lazy", ANIMALS, seed=5),
        "epochs": 2, "start": "empty", "offset": 2.0, "lr": 0.4, "penalty": 0.02, "sparsities": [0.1, 1.0],
        "draws": 11, "batch_size": 16, "seed": 3, "answer_tokens": "all",
    }  # fmt: skip
    return Calls([{"pair": full_pair(data), "prompts": data, **given}], Settings)


def calls_of_head_probe() -> Calls:
    given = {
        "labels": list("aabb" * 3), "role": "base", "groups": [f"h{i // 2}" for i in range(12)], "folds": 2,
        "ridge": 2.0, "draws": 3, "seed": 3,
    }  # fmt: skip
    return Calls([{"recording": recording("z"), **given}])


def calls_of_head_selection() -> Calls:
    given = {
        "penalty": 1e-2, "epochs": 1, "learning_rate": 1e-2, "batch_size": 4, "end": False, "resamples": 2,
        "holdout": 0.5, "heads": 2, "other": rows(4, "a"), "controls": 11, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": rows(), **given}], SelectionOptions)


def calls_of_head_words() -> Calls:
    return Calls([{"pair": pair(), "prompts": rows(), "layer": 1, "head": 2, "top": 3, "seed": 3}])


def calls_of_logit_lens() -> Calls:
    given = {"layers": [0, 2], "positions": "last", "top": 2, "shown": 1, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


def calls_of_mask_heads() -> Calls:
    given = {"heads": ["L1H0"], "counts": [1], "how": "mean", "max_new_tokens": 5, "controls": 3, "seed": 3}
    return Calls([{"subject": copier(), "trials": trials(4), **given}], MaskOptions)


def calls_of_mask_overlap() -> Calls:
    data = graft_task("quick", ANIMALS)
    one, other = (
        probes.graft(full_pair(data), data, method=how, sparsity=0.02, sparsities=[1.0], draws=10)
        for how in ("movement", "first_order")
    )
    return Calls([{"first": one, "second": other, "null": [one]}])


def calls_of_patching() -> Calls:
    models, common = {"subject": pair(), "prompts": rows()}, {"normalise": False, **RUN}
    sites = {
        "sites": ["attn_out"], "source": "base", "target": "tuned", "what": "z", "metric": "prob",
        "positions": "last", "layers": [0, 1], "method": "ig", "confirm": 0.5, "confirm_others": 0.2, "ig_steps": 2,
        "controls": 3,
    }  # fmt: skip
    heads = {"inputs": "target", "only_correct": True, "together": 2, "exact": True, "answer_tokens": "all"}
    return Calls([{**models, **common, **sites}, {**models, **common, **heads}], PatchOptions)


def calls_of_needle_search() -> Calls:
    """A copier whose tokenizer has a word for every word of the haystack, needle and question."""
    haystack, needle = "ant bee . cat dog . eel fox . gnu hen . " * 4, "answer zebra hides here ."
    template = " q {question} answer"
    words = word_tokenizer([haystack, needle, template, "what ?"])
    words.eos_token = "."
    place = Path(mkdtemp())
    (place / "book.txt").write_text(haystack)
    given = {
        "haystack": str(place / "book.txt"), "needles": [{"question": "what ?", "text": needle}],
        "lengths": [16], "depths": [0.5], "template": template, "chat": False, "max_new_tokens": 5, "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": copier(len(words), 96, tokenizer=words), **given}])


def calls_of_path_patching() -> Calls:
    given = {
        "receivers": ["L2H1"], "through": "k", "position": -2, "source": "tuned", "target": "base",
        "metric": "logit_diff", "senders": ["L0H0", "L1H3"], "layers": [0], "freeze_mlps": True,
        "only_correct": False, "controls": 3, **RUN,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": rows(), **given}], PathOptions)


def calls_of_retrieval_heads() -> Calls:
    given = {"max_new_tokens": 5, "keep_above": 0.2, "threshold": 0.3, "decoys": 3, "seed": 3}
    return Calls([{"subject": copier(), "trials": trials(4), **given}], RetrievalOptions)


def saved(*models: Any) -> list[str]:
    """Folders of models."""
    places = [mkdtemp() for _ in models]
    for place, model in zip(places, models, strict=True):
        model.save_pretrained(place)
    return places


def calls_of_series_profile() -> Calls:
    both, other = pair(), tuned_copy(tiny_model("llama"), seed=5, size=0.1)
    given = {"checkpoints": saved(other, both.base.hf), "scores": [0.1, 0.5, 0.2], "draws": 50, "seed": 3}
    return Calls([{"base": both.base, "tuned": both.tuned, **given}])


def calls_of_series_curve() -> Calls:
    folders = saved(*(tuned_copy(tiny_model("llama"), seed=seed, size=0.1) for seed in (5, 6)))
    learnt = {name: rows(4, "a") for name in (*(Path(folder).name for folder in folders), "tuned")}
    given = {"checkpoints": folders, "lens": True, "trained_on": learnt, "draws": 50, "batch_size": 3, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


def calls_of_merge_test() -> Calls:
    other = tuned_copy(tiny_model("llama"), seed=5, size=0.1)
    given = {
        "checkpoints": saved(other), "rules": ["stock", "dare"], "density": 0.5, "points": 3, "batch_size": 3,
        "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": pair(), "prompts": rows(16), **given}])


def calls_of_selection_trial() -> Calls:
    given = {
        "scores": ["fisher", "half_reset"],
        "share": 0.2,
        "retain": rows(8, "a"),
        "draws": 2,
        "batch_size": 3,
        "seed": 3,
    }
    return Calls([{"pair": pair(), "prompts": rows(16), **given}])


def calls_of_update_anatomy() -> Calls:
    both = pair()
    return Calls([{"base": both.base, "tuned": both.tuned, "k": 5, "rank": 3, "share": 0.1, "draws": 3, "seed": 3}])


def calls_of_lora_likeness() -> Calls:
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


def calls_of_sparse_composition() -> Calls:
    (other,) = saved(tuned_copy(tiny_model("llama"), seed=5, size=0.1))
    given = {"checkpoints": [other], "densities": [0.2, 0.5], "batch_size": 3, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


def calls_of_mask_churn() -> Calls:
    both = pair()
    (other,) = saved(tuned_copy(tiny_model("llama"), seed=5, size=0.1))
    return Calls([{"base": both.base, "tuned": both.tuned, "checkpoints": [other], "share": 0.05}])


def calls_of_learned_scaling() -> Calls:
    (other,) = saved(tuned_copy(tiny_model("llama"), seed=5, size=0.1))
    given = {"checkpoints": [other], "epochs": 1, "lr": 0.2, "batch_size": 4, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(16), **given}])


def calls_of_adapter_panel() -> Calls:
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(tiny_model("llama"), LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    both = load_pair(tiny_model("llama"), tuned, tokenizer=tokenizer(), check=False)
    return Calls([{"pair": both, "prompts": rows(), "ablate": False, "seed": 3}])


def calls_of_switching_curve() -> Calls:
    given = {
        "behaviour": shouts, "ranking": ["L0E1", "L1E2"], "counts": [1], "mode": "drop", "max_new_tokens": 1,
        "controls": 3, "draws": 20, "batch_size": 4, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair("qwen3moe"), "prompts": rows(), **given}], SwitchOptions)


def calls_of_probability_movement() -> Calls:
    return Calls([{"pair": pair(), "prompts": rows(), "bins": 2, "batch_size": 3, "seed": 3}])


def calls_of_token_shift() -> Calls:
    given = {"max_new_tokens": 2, "batch_size": 3, "seed": 3}
    return Calls([
        {"pair": pair(), "prompts": rows(), **given},
        {"pair": pair(), "prompts": rows(), "base_prompts": rows(first="a"), **given},
    ])  # fmt: skip


def calls_of_weight_delta() -> Calls:
    both = pair()
    return Calls([{"base": both.base, "tuned": both.tuned, "k": 3, "exact": True}])
