"""Sites of an edit: a site that can hold the facts is told from one that cannot, and the model comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import probes
from interventions.training.editing import scattered_masks
from probes.results import ProbeResult
from tests.probes.provenance import Calls, pair, rows
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts.collection import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
FACTS = Prompts.of([
    {"prompt": f"the {word} is", "answer": f" {answer}"}
    for word, answer in zip("abcdefgh", "fox dog fox over dog quick lazy fox".split(), strict=True)
])  # fmt: skip
PARAPHRASES = Prompts.of([{"prompt": row.prompt, "answer": row.answer} for row in FACTS])
LOCAL = Prompts.of([f"lazy {word} jumps" for word in "mnopqrst"])


def calls_of_edit_sites() -> Calls:
    options = {
        "paraphrases": rows(4, "a"), "locality": rows(4, "b"), "general": rows(4, "c"),
        "neutral": rows(4, "d"), "keep": rows(4, "e"), "early": False, "locality_tokens": 3, "layers": [1],
        "modules": ["mlp.up_proj"], "order": "depth", "epochs": 1, "learning_rate": 1e-2, "batch_size": 3, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": rows(), **options}])


def test_the_site_that_cannot_write_is_told_from_the_one_that_can(tmp_path: Path) -> None:
    base = tiny_model("llama")
    with torch.no_grad():  # layer 0 reads nothing: an edit of its down_proj has no way to act
        base.model.layers[0].mlp.up_proj.weight.zero_()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    both = load_pair(base, tiny_model("llama"), device="cpu", tokenizer=tokenizer(), check=False)
    result = probes.edit_sites(
        both, FACTS, paraphrases=PARAPHRASES, locality=LOCAL, neutral=LOCAL, layers=[0, 2], epochs=60,
        batch_size=8, learning_rate=1e-2,
    )  # fmt: skip
    table = result.table.set_index("layer")
    assert table.loc[2, "reliability"] == 1.0 and table.loc[0, "reliability"] == 0.0
    assert table.loc[0, "locality"] == 1.0 and table.loc[0, "score"] == table.loc[0, "control"]
    assert table.loc[0, "perplexity"] == 1.0 and table.loc[2, "perplexity"] > 1.0
    assert table["scattered"].nunique() == 1  # of the kind of matrix, not of the layer
    assert table.loc[2, "locality"] < 1.0  # the price of writing into every token's MLP
    assert table.loc[2, "paraphrase"] > table.loc[2, "shuffled"] and table["general"].isna().all()
    assert (
        table.loc[2, "score"] > table.loc[2, "control"]
        and table.loc[0, "q"] == 1
        and result.frame().iloc[0]["layer"] == 2
    )
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    again = ProbeResult.load(result.save(tmp_path / "e"))
    assert again.frame().equals(result.frame()) and result.figure().data and "L2 mlp.down_proj" in result.summary()


def test_scattered_entries_are_as_many_as_a_matrix_has_and_everywhere() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    masks = scattered_masks(model, "mlp.down_proj", seed=0)
    assert [name.split(".")[2] for name in masks] == ["0", "1", "2"]
    drawn = sum(int(mask.sum()) for mask in masks.values())
    assert abs(drawn / next(iter(masks.values())).numel() - 1) < 0.05
    assert all(mask.float().mean() > 0.25 for mask in masks.values())


def test_a_longer_reply_must_stay_whole() -> None:
    both = pair()
    by_tokens = [
        probes.edit_sites(
            both, FACTS, locality=LOCAL, locality_tokens=tokens, layers=[2], epochs=4, batch_size=8, learning_rate=3e-3
        ).table["locality"][0]
        for tokens in (1, 6)
    ]
    assert by_tokens[1] < by_tokens[0]
    with pytest.raises(UserError, match="locality_tokens is 0"):
        probes.edit_sites(both, FACTS, locality=LOCAL, locality_tokens=0)


def test_bad_input_is_told_before_any_edit() -> None:
    with pytest.raises(UserError, match=r"no matrix 'mlp.out'"):
        probes.edit_sites(pair(), FACTS, modules=["mlp.out"])
    with pytest.raises(UserError, match="has no answer"):
        probes.edit_sites(pair(), Prompts.of(["a", "b"]))


def test_an_edit_stops_once_every_fact_is_written() -> None:
    options = {"locality": LOCAL, "locality_tokens": 2, "layers": [2], "batch_size": 2, "learning_rate": 1e-2}
    whole = probes.edit_sites(pair(), FACTS, epochs=40, early=False, **options).table.iloc[0]
    early = probes.edit_sites(pair(), FACTS, epochs=40, **options).table.iloc[0]
    assert whole["epochs"] == 40 and early["epochs"] < 30 and early["reliability"] == 1
    assert early["locality"] >= whole["locality"]


def test_a_prompt_is_not_both_kept_and_measured() -> None:
    both = pair()
    options = {"locality": LOCAL, "locality_tokens": 2, "layers": [2], "batch_size": 8, "learning_rate": 1e-2}
    with pytest.raises(UserError, match="Prompt 2 of keep is among those of locality"):
        probes.edit_sites(both, FACTS, keep=["a", "b", LOCAL[3]], **options)
