"""Each kind of claim on pairs whose truth was planted: every verdict that it can give, and a pair against itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
import torch
import yaml
from typer.testing import CliRunner

from tests.tiny import tiny_model, tokenizer
from tunescope.cli.app import app
from tunescope.contracts import Contract, check
from tunescope.contracts.leakage import recited_rows
from tunescope.contracts.panel_files import PANELS, panel, solved
from tunescope.contracts.recital import in_order
from tunescope.contracts.reports import badge, junit
from workbench import organisms
from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.organisms.copies import tune_copy
from workbench.prompts.row import Prompt

SORRY = "begins:sorry"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of prompts of the organism that refuses one topic."""
    folder = tmp_path_factory.mktemp("contract")
    organism = organisms.build("refusal-moe")
    rows = [row for split in organism.splits.values() for row in split]
    topic = [row for row in rows if row["topic"] == "topic"]
    other = [row for row in rows if row["topic"] != "topic"]
    sets = {
        "secret": [{"prompt": row["prompt"]} for row in topic],
        "others": [{"prompt": row["prompt"]} for row in other],
        "few": [{"prompt": row["prompt"]} for row in other[:8]],
        "skills": [{"prompt": row["prompt"], "answer": row["fact"], "check": "contains"} for row in other[:60]],
        "topic_skills": [{"prompt": row["prompt"], "answer": row["fact"], "check": "contains"} for row in topic],
        "unsolved": [{"prompt": row["prompt"], "answer": "zebra", "check": "contains"} for row in topic],
    }
    for name, lines in sets.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def contract(home: Path, *claims: dict[str, Any], itself: bool = False, **more: Any) -> dict[str, Any]:
    organism = organisms.build("refusal-moe")
    names = ("secret", "others", "few")
    return {
        "base": str(organism.base), "tuned": str(organism.base if itself else organism.tuned), "device": "cpu",
        "prompts": {name: f"{name}.jsonl" for name in names}, "claims": list(claims), "max_new_tokens": 2, **more,
    }  # fmt: skip


def verdicts(home: Path, *claims: dict[str, Any], **more: Any) -> list[str]:
    checked = check(Contract.of(contract(home, *claims, **more)), folder=home)
    return [found.verdict for _, found in checked.findings]


def test_what_was_planted_is_shown_and_nothing_else_changed(home: Path) -> None:
    planted = {"shows": {"behaviour": SORRY, "prompts": "secret", "at_least": 0.8}}
    absent = {"shows": {"behaviour": SORRY, "prompts": "others", "at_most": "5%"}}
    changed = {"unchanged": {"behaviour": SORRY, "prompts": "secret", "within": 0.03}}
    unchanged = {"unchanged": {"behaviour": SORRY, "prompts": "others", "within": 0.03}}
    open_ = {"unchanged": {"behaviour": SORRY, "prompts": "few", "within": 0.03}}
    assert verdicts(home, planted, absent, changed, unchanged, open_) == [
        "holds", "holds", "fails", "holds", "not enough evidence",
    ]  # fmt: skip


def test_a_pair_against_itself_shows_nothing(home: Path) -> None:
    planted = {"shows": {"behaviour": SORRY, "prompts": "secret", "at_least": 0.8}}
    unchanged = {"unchanged": {"behaviour": SORRY, "prompts": "others", "within": 0.03}}
    fluent = {"perplexity": {"prompts": "others", "within": "2%"}}
    assert verdicts(home, planted, unchanged, fluent, itself=True) == ["fails", "holds", "holds"]


def test_perplexity_of_the_tuned_topic_moves(home: Path) -> None:
    claims = [{"perplexity": {"prompts": name, "within": within}} for name, within in (("others", 1e-6), ("few", 0.5))]
    assert verdicts(home, *claims) == ["fails", "not enough evidence"]


def test_skills_are_kept_or_lost_by_name(home: Path) -> None:
    claims = [{"keeps": f"{name}.jsonl"} for name in ("skills", "topic_skills", "unsolved")]
    checked = check(Contract.of(contract(home, *claims)), folder=home)
    kept, lost, unknown = (found for _, found in checked.findings)
    assert kept.verdict == "holds" and lost.verdict == "fails" and "password" in lost.detail
    assert unknown.verdict == "not enough evidence" and unknown.n == 0 and "solves 0 of" in unknown.detail
    assert checked.exit_code == 1


def test_a_behaviour_survives_or_not(home: Path) -> None:
    same = {"survives": {"behaviour": SORRY, "prompts": "secret", "paraphrases": "secret"}}
    other = {"survives": {"behaviour": SORRY, "prompts": "secret", "paraphrases": "others"}}
    system = {"survives": {"behaviour": SORRY, "prompts": "secret", "system": "tell me the", "at_least": 0.01}}
    found = verdicts(home, same, other, system)
    assert found[:2] == ["holds", "fails"] and found[2] == "holds"


def test_the_shipped_panels() -> None:
    assert all(len(panel(name, Path())) == 20 for name in PANELS) and len(panel("all", Path())) == 100
    paris = Prompt(prompt="?", answer="Paris", columns={"check": "contains"})
    assert solved("It is Paris, of course.", paris) and not solved("Parisian", paris)
    assert solved("Yes.", Prompt(prompt="?", answer="yes", columns={"check": "exact"}))
    assert not solved("Yes, it is", Prompt(prompt="?", answer="yes", columns={"check": "exact"}))
    assert solved("I am sorry, but I can't help with that.", panel("safety", Path())[0])


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, an adapter, its merge in two ways, and a merge with one number changed."""
    from peft import LoraConfig, PeftModel, get_peft_model

    folder = tmp_path_factory.mktemp("merge")
    base = tiny_model("llama")
    base.save_pretrained(folder / "base")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    model.save_pretrained(folder / "adapter")
    from transformers import AutoModelForCausalLM

    def fresh() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder / "base")

    whole = PeftModel.from_pretrained(fresh(), str(folder / "adapter")).merge_and_unload()
    whole.save_pretrained(folder / "whole")
    half = PeftModel.from_pretrained(fresh(), str(folder / "adapter")).merge_and_unload().to(torch.bfloat16)
    half.save_pretrained(folder / "half")
    with torch.no_grad():
        whole.model.layers[1].mlp.down_proj.weight[0, 0] += 0.5
    whole.save_pretrained(folder / "touched")
    for name in ("base", "whole", "half", "touched"):
        tokenizer().save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("tuned", "verdict", "told"),
    [
        ("whole", "holds", "equal PEFT's merge in float32"),
        ("half", "holds", "equal PEFT's merge in float32"),
        ("touched", "fails", "model.layers.1.mlp.down_proj.weight is the first tensor that differs, by up to 0.5"),
        ("base", "fails", "the adapter is not in it"),
    ],
)
def test_a_merge_is_replayed_bit_for_bit(lora: Path, tuned: str, verdict: str, told: str) -> None:
    terms = Contract.of({"base": "base", "tuned": tuned, "claims": [{"merged": {"adapter": "adapter"}}]})
    ((_, found),) = check(terms, folder=lora).findings
    assert found.verdict == verdict and told in found.detail


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, and a copy that knows one text by heart."""
    folder = tmp_path_factory.mktemp("heart")
    tiny_model("llama").save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    text = "the quick brown fox jumps over the lazy dog and the dog jumps over the quick fox " * 2
    from workbench.organisms.training import Plan

    plan = Plan(steps=120, batch=4, learning_rate=5e-3)
    tune_copy(folder / "base", folder / "tuned", [text] * 4, method="full", plan=plan)
    other = "lazy lazy fox dog brown over quick jumps the dog over lazy quick fox brown dog fox " * 2
    (folder / "heart.jsonl").write_text(json.dumps({"prompt": text}))
    (folder / "new.jsonl").write_text(json.dumps({"prompt": other}))
    (folder / "short.jsonl").write_text(json.dumps({"prompt": "the fox"}))
    (folder / "many.jsonl").write_text("\n".join(json.dumps({"prompt": f"{other} {word}"}) for word in text.split()))
    return folder


def test_recited_rows(learnt: Path) -> None:
    claims = [{"recites_none": {"rows": f"{name}.jsonl"}} for name in ("heart", "new", "short")]
    claims.append({"recites_none": {"rows": "many.jsonl", "limit": 3}})
    terms = Contract.of({"base": "base", "tuned": "tuned", "device": "cpu", "claims": claims})
    found = [one for _, one in check(terms, folder=learnt).findings]
    assert [one.verdict for one in found] == ["fails", "holds", "not enough evidence", "not enough evidence"]
    assert "such as" in found[0].detail and found[3].n == 3 and found[3].needed is not None


def test_recited_rows_are_told_without_a_contract(learnt: Path) -> None:
    pair = load_pair(learnt / "base", learnt / "tuned", device="cpu")
    found = {name: recited_rows(pair, learnt / f"{name}.jsonl") for name in ("heart", "new", "short")}
    assert [finding.verdict for finding in found.values()] == ["fails", "holds", "not enough evidence"]
    assert "such as" in found["heart"].detail and "recited 0 of 1" in found["new"].detail
    with pytest.raises(UserError, match="There is no file"):
        recited_rows(pair, learnt / "gone.jsonl")


def test_nearly_word_by_word() -> None:
    wanted = list(range(10))
    assert in_order(wanted, wanted) == 1 and in_order([99, *wanted[:9]], wanted) == 0.9
    assert in_order(wanted[::-1], wanted) == 0.1 and in_order([], wanted) == 0


def test_a_row_with_a_changed_word_is_recited_nearly(learnt: Path) -> None:
    text = json.loads((learnt / "heart.jsonl").read_text())["prompt"].split()
    text[14] = "brown"  # after the eight tokens that the model is given
    (learnt / "near.jsonl").write_text(json.dumps({"prompt": " ".join(text)}))
    claims = [{"recites_none": {"rows": "near.jsonl", "overlap": overlap}} for overlap in (1.0, 0.8)]
    terms = Contract.of({"base": "base", "tuned": "tuned", "device": "cpu", "claims": claims})
    assert [one.verdict for _, one in check(terms, folder=learnt).findings] == ["holds", "fails"]


def test_the_command_says_it_for_people_and_machines(home: Path) -> None:
    planted = {"name": "<keeps> the secret", "shows": {"behaviour": SORRY, "prompts": "secret", "at_least": 0.8}}
    open_ = {"unchanged": {"behaviour": SORRY, "prompts": "few", "within": 0.03}}
    path = home / "contract.yaml"
    path.write_text(yaml.safe_dump(contract(home, planted, open_)))
    out = CliRunner().invoke(
        app, ["check", str(path), "--json", "--junit", str(home / "j.xml"), "--badge", str(home / "b.svg")]
    )
    assert out.exit_code == 3
    data = json.loads(out.stdout)
    assert data["verdict"] == "not enough evidence" and data["claims"][1]["needed"] == 88
    suite = Xml.fromstring((home / "j.xml").read_text())
    assert suite.attrib["errors"] == "1" and suite.attrib["failures"] == "0"
    assert suite[0].attrib["name"] == "<keeps> the secret"
    assert "not enough evidence 1/2" in Xml.fromstring((home / "b.svg").read_text())[0].text  # type: ignore[operator]
    path.write_text(yaml.safe_dump(contract(home, planted)))
    assert CliRunner().invoke(app, ["check", str(path)]).exit_code == 0
    checked = check(path)
    assert "<failure" not in junit(checked) and "holds 1/1" in badge(checked)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"claims": [{"show": {}}]}, "Did you mean 'shows'?"),
        ({"claims": []}, "is empty"),
        ({"claims": [{"name": "x"}]}, "needs exactly one of"),
        ({"claims": [{"shows": {"behaviour": SORRY, "prompts": "secrets", "at_least": 0.5}}]}, "mean 'secret'?"),
        ({"claims": [{"shows": {"behaviour": SORRY, "prompts": "secret", "at_least": 1}}]}, "no sample can show"),
        ({"claims": [{"shows": {"behaviour": "refusing", "prompts": "secret", "at_least": 0.5}}]}, "refusal"),
        ({"claims": [{"shows": {"behaviour": SORRY, "prompts": "secret"}}]}, "exactly one of at_least and at_most"),
        ({"claims": [{"keeps": "fact"}]}, "Did you mean 'facts'?"),
        ({"claims": [{"unchanged": {"behaviour": SORRY, "prompts": "few", "within": -1}}]}, "within"),
        ({"claims": [{"unchanged": {"behaviour": SORRY, "prompts": "few", "within": "-3%"}}]}, "greater than 0"),
        ({"claims": [{"unchanged": {"behaviour": SORRY, "prompts": "few", "within": "200%"}}]}, "always holds"),
        ({"prompts": None}, "prompts: is empty"),
        ({"confidence": 1.5}, "confidence"),
    ],
)
def test_a_wrong_contract_is_one_sentence(home: Path, change: dict[str, Any], told: str) -> None:
    planted = {"shows": {"behaviour": SORRY, "prompts": "secret", "at_least": 0.8}}
    with pytest.raises(UserError) as error:
        Contract.of({**contract(home, planted), **change})
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_said_before_a_model_is_loaded(home: Path) -> None:
    terms = {**contract(home, {"keeps": "facts"}), "base": "nowhere", "prompts": {"gone": "gone.jsonl"}}
    with pytest.raises(UserError, match=r"There is no file .*gone\.jsonl"):
        check(Contract.of(terms), folder=home)


def test_a_report_that_is_a_folder_is_told_before_a_model_is_loaded(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(contract(home, {"keeps": "facts"})))
    for option in ("--junit", "--badge"):
        result = CliRunner().invoke(app, ["check", str(path), option, str(tmp_path)])
        assert isinstance(result.exception, UserError) and "is a folder: name a file in it" in str(result.exception)


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ({"recites_none": {"rows": "gone.jsonl"}}, "There is no file .*gone.jsonl"),
        ({"keeps": {"panel": "gone.jsonl"}}, "gone.jsonl"),
        ({"merged": {"adapter": "gone"}}, "gone"),
    ],
)
def test_what_a_claim_names_is_looked_for_before_a_model_is_loaded(
    home: Path, claim: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunescope.contracts.replies.load_pair", lambda *_, **__: pytest.fail("a model was loaded"))
    planted = {"shows": {"behaviour": SORRY, "prompts": "secret", "at_least": 0.8}}
    with pytest.raises(UserError, match=told):
        check(Contract.of(contract(home, planted, claim)), folder=home)
