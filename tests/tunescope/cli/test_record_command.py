"""``tunescope record`` and the manners of the command line, through real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.recording.recording import Recording

COMMAND = [sys.executable, "-W", "error::DeprecationWarning:workbench", "-c", "from tunescope.cli import main; main()"]


def tunescope(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=environment, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pair")
    base = tiny_model("llama")
    for name, model in (("base", base), ("tuned", tuned_copy(base))):
        model.save_pretrained(home / name)
        tokenizer().save_pretrained(home / name)
    tiny_model("llama", hidden_size=32).save_pretrained(home / "narrow")
    tokenizer().save_pretrained(home / "narrow")
    rows = [{"prompt": "the quick"}, {"prompt": "the lazy dog jumps"}, {"prompt": "brown fox"}]
    (home / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (home / "broken.jsonl").write_text('{"prompt": "the"}\n{"prompt": \n')
    (home / "empty.jsonl").write_text("")
    return home


def record(folders: Path, **change: Any) -> list[str]:
    call = {
        "base": "base",
        "tuned": "tuned",
        "prompts": "prompts.jsonl",
        "sites": "z,resid_post",
        "out": "run",
        **change,
    }
    options = [word for name in ("prompts", "sites", "out", "positions", "layers") if name in call
               for word in (f"--{name}", str(call[name]))]  # fmt: skip
    return ["record", call["base"], call["tuned"], *options]


def test_recorded_stored_and_verified(folders: Path, tmp_path: Path) -> None:
    done = tunescope(*record(folders, out=tmp_path / "run"), "--json", cwd=folders)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["rows"] == 3 and len(said["sites"]) == 6
    rec = Recording.load(tmp_path / "run" / "activations")
    assert rec["tuned"]["z", 2].shape == (3, 4, 16)
    top = said["difference"][0]
    moved = rec["tuned"][top["site"]].load().double() - rec["base"][top["site"]].load().double()
    assert top["mean_distance"] == pytest.approx(float(moved.flatten(1).pow(2).sum(1).mean().sqrt()))
    verified = tunescope("runs", "verify", str(tmp_path / "run"))
    assert verified.returncode == 0
    again = tunescope(*record(folders, out=tmp_path / "run"), "--json", cwd=folders)
    assert again.returncode == 0 and json.loads(again.stdout) == said
    shard = next((tmp_path / "run" / "activations").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert tunescope("runs", "verify", str(tmp_path / "run")).returncode == 1


def test_statistics_only(folders: Path, tmp_path: Path) -> None:
    done = tunescope(*record(folders, out=tmp_path / "s", positions="all"), "--statistics", "--json", cwd=folders)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "s" / "activations").exists() and (tmp_path / "s" / "moments.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base": "./nowhere"}, "There is no base model"),
        ({"tuned": "narrow"}, "hidden_size"),
        ({"prompts": "broken.jsonl"}, "line 2"),
        ({"prompts": "empty.jsonl"}, "empty.jsonl"),
        ({"prompts": "absent.jsonl"}, "absent.jsonl"),
        ({"sites": "resid_pots"}, "Did you mean 'resid_post'"),
        ({"positions": "lst"}, "Unknown position"),
        ({"layers": "7"}, "layers 0 to 2"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    folders: Path, tmp_path: Path, change: dict[str, str], says: str
) -> None:
    done = tunescope(*record(folders, **{"out": tmp_path / "run", **change}), cwd=folders)
    assert done.returncode == 1
    assert says in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1 and not done.stdout
    assert not (tmp_path / "run").exists()


def test_another_configuration_is_refused(folders: Path, tmp_path: Path) -> None:
    assert tunescope(*record(folders, out=tmp_path / "run"), cwd=folders).returncode == 0
    other = tunescope(*record(folders, out=tmp_path / "run", sites="z"), cwd=folders)
    assert other.returncode == 1 and "sites" in other.stderr


def test_the_run_says_how_its_models_were_loaded(folders: Path, tmp_path: Path) -> None:
    asked = [*record(folders, out=tmp_path / "run"), "--dtype", "bfloat16", "--device", "cpu"]
    done = tunescope(*asked, cwd=folders)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["dtype"], config["device"]) == ("bfloat16", "cpu") and "allow_pickle" not in config
    assert tunescope(*asked, cwd=folders).returncode == 0
    other = tunescope(*asked[:-1], "auto", cwd=folders)
    assert other.returncode == 1 and "'device' is \"cpu\" there" in other.stderr


def test_wrong_use_exits_with_two() -> None:
    assert tunescope("record").returncode == 2
    assert tunescope("recrd").returncode == 2
    assert tunescope("--version").stdout.startswith("tunescope ")


def test_help_imports_no_model_code() -> None:
    code = "import sys; from tunescope.cli import run; run(['--help']); sys.exit(int('torch' in sys.modules))"
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_stories_against_a_fine_tuned_copy(stories: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(stories)
    tuned_copy(base).save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(stories).save_pretrained(tmp_path / "tuned")
    (tmp_path / "p.txt").write_text("Once upon a time\nThe dog ran to\n")
    done = tunescope(
        "record", str(stories), str(tmp_path / "tuned"), "--prompts", str(tmp_path / "p.txt"),
        "--sites", "z,resid_post", "--positions", "last", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tunescope("runs", "verify", str(tmp_path / "run")).returncode == 0
