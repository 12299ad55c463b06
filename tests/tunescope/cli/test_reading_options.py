"""--raw, --system, --template and --ids: what the models read, on the command line as in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from interventions.offset import Offset
from interventions.recipe import Recipe
from tests.tiny import tiny_model, tokenizer, tuned_copy
from tunescope.cli.app import app
from workbench.models.pair import load_pair
from workbench.prompts import Prompts
from workbench.runs.folder import open_run

OWN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}[assistant] "
OTHER = "{% for m in messages %}<<{{ m['content'] }}>>{% endfor %}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_model("llama")
    for name, hf, template in (("base", base, OTHER), ("tuned", tuned_copy(base), OWN)):
        hf.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
        (folder / name / "chat_template.jinja").write_text(template)
    Recipe([Offset(1, torch.ones(64))]).save(folder / "recipe.safetensors")
    (folder / "p.txt").write_text("the fox\n")
    return folder


def steer(home: Path, *more: str) -> dict[str, Any]:
    given = ["steer", str(home / "base"), "--tuned", str(home / "tuned"), "--recipe", str(home / "recipe.safetensors")]
    result = CliRunner().invoke(app, [*given, "--prompt", "the fox", "--ids", "--json", "--max-new-tokens", "4", *more])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["rows"][0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "[user] the fox [assistant] "),
        (["--raw"], "the fox"),
        (["--system", "Be brief."], "[system] Be brief. [user] the fox [assistant] "),
        (["--template", "base"], "<<the fox>>"),
    ],
)
def test_what_steer_reads(home: Path, options: list[str], text: str) -> None:
    row = steer(home, *options)
    assert row["prompt"] == "the fox" and row["reads"]["text"] == text
    pair = load_pair(home / "base", home / "tuned", template="base" if "base" in options else "tuned")
    turns = {"chat": False if "--raw" in options else None, "system": "Be brief." if "--system" in options else None}
    prompts = Prompts.of(["the fox"], **turns)
    assert row["reads"]["input_ids"] == pair.tuned.encode(prompts).input_ids[0].tolist()
    assert row["tuned"] == pair.tuned.generate(prompts, max_new_tokens=4)[0]


def test_each_side_reads_by_its_own_template(home: Path) -> None:
    reads = steer(home, "--template", "own")["reads"]
    assert (reads["base"]["text"], reads["tuned"]["text"]) == ("<<the fox>>", "[user] the fox [assistant] ")


def test_a_recording_keeps_how_its_prompts_were_read(home: Path, tmp_path: Path) -> None:
    given = [
        "record",
        str(home / "base"),
        str(home / "tuned"),
        "--prompts",
        str(home / "p.txt"),
        "--sites",
        "resid_post",
    ]
    for name, more in (("raw", ["--raw"]), ("base", ["--template", "base"])):
        result = CliRunner().invoke(app, [*given, "--out", str(tmp_path / name), *more])
        assert result.exit_code == 0, result.output
    raw = open_run(tmp_path / "raw")
    assert Prompts.load(raw.file("prompts/prompts.jsonl")) == Prompts.of(["the fox"], chat=False)
    assert open_run(tmp_path / "base").config["template"] == "base"


def test_diff_measures_what_it_reads(home: Path, tmp_path: Path) -> None:
    given = ["diff", str(home / "base"), str(home / "tuned"), "--prompts", str(home / "p.txt"), "--metrics", "kl"]
    given += ["--max-new-tokens", "2", "--json"]
    found = {}
    for name, more in (("chat", []), ("raw", ["--raw"])):
        result = CliRunner().invoke(app, [*given, "--out", str(tmp_path / name), *more])
        assert result.exit_code == 0, result.output
        found[name] = json.loads(result.stdout)
    assert found["chat"]["provenance"]["prompts"] != found["raw"]["provenance"]["prompts"]
    assert found["chat"]["provenance"]["models"]["base"]["chat_template"] == "tuned"


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--raw", "--system", "s"], "system turn"), (["--template", "turned"], "none of tuned, base, own")],
)
def test_wrong_use_is_told_before_a_model_is_loaded(tmp_path: Path, options: list[str], said: str) -> None:
    given = ["steer", str(tmp_path / "no-such-model"), "--recipe", "r.safetensors", "--prompt", "a", *options]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2 and said in " ".join(result.output.split())
