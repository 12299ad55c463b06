"""The registry: methods are listed without importing them, plug-ins join in, and mistakes are sentences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench import method_index
from workbench.errors import UserError
from workbench.method_index import all_methods, index, load_method
from workbench.method_options import options_of
from workbench.methods import method

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests" / "plugin"


def tunescope(*arguments: str, folder: Path | None = None, plugin: bool = True) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *([str(PLUGIN)] if plugin else [])])
    return subprocess.run(
        [sys.executable, "-m", "tunescope", *arguments], capture_output=True, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
    )  # fmt: skip


def test_methods_are_listed_without_importing_them() -> None:
    code = "from workbench.method_index import index; assert index().named('heads'); import sys; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


def test_every_method_says_all_that_is_derived_from_it() -> None:
    for one in all_methods():
        assert one.question.endswith("?"), f"{one.name}: its question ends with a question mark"
        assert one.summary.endswith("."), f"{one.name}: the docstring begins with a sentence, which is its summary"
        assert len({option.name for option in one.options}) == len(one.options), one.name
        assert one.kind != "probe" or one.cost, f"{one.name}: say what it costs"


def test_an_unknown_method_is_answered_with_the_closest() -> None:
    with pytest.raises(UserError, match=r"'haeds'.* Did you mean 'heads'"):
        load_method("haeds")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match=r"'heads' of .* is already a method of probes"):

        @method("heads", group="heads", question="Which?")
        def heads() -> None:
            """Nothing."""


def test_a_file_that_would_hide_its_function_is_told_so() -> None:
    def shift() -> None:
        """Nothing."""

    shift.__module__ = "probes.shift"
    with pytest.raises(ValueError, match=r"probes/shift.py would hide probes.shift: give the file another name"):
        method("shift-of-nothing", group="heads", question="Which?")(shift)


def test_options_come_from_signature_and_docstring() -> None:
    def probe(pair: str, *, k: int = 3, names: list[str] | None = None, exact: bool = False) -> None:
        """Something.

        Args:
            k: How many
                are kept.
            names: Which ones.
        """

    found = {option.name: option for option in options_of(probe)}
    assert found["k"].help == "How many are kept." and found["k"].kind == "integer" and found["k"].minimum == 1
    assert found["names"].kind == "texts" and found["names"].optional and found["exact"].kind == "flag"
    assert found["pair"].required


def test_a_plugin_appears_everywhere(tmp_path: Path) -> None:
    base = tiny_model("llama")
    for name, model in (("base", base), ("tuned", tuned_copy(base, size=0.1))):
        model.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "p.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"the {word}"}) for word in ("fox", "dog", "lazy"))
    )
    assert "Which neurons did tuning move?" in tunescope("localize", "--help").stdout
    names = [row["name"] for row in json.loads(tunescope("methods", "--json").stdout)]
    assert "neurons" in names and "heads" in names
    call = ["localize", "neurons", "base", "tuned", "--prompts", "p.jsonl", "--top", "2", "--out", "run", "--json"]
    done = tunescope(*call, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 2 * base.config.num_hidden_layers
    again = tunescope("run", "run/experiment.yaml", "--out", "again", "--json", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    wrong = tunescope(*call[:6], "--norm", "least", folder=tmp_path)
    assert wrong.returncode == 2 and "is none of mean, max" in wrong.stderr
    gone = tunescope("run", "run/experiment.yaml", "--out", "third", folder=tmp_path, plugin=False)
    assert gone.returncode == 1 and "unknown value 'localize neurons'" in gone.stderr


def test_a_plugin_that_cannot_be_read_is_named_and_the_rest_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "takes_heads.py").write_text('@method("heads", group="g", question="q?")\ndef f():\n    pass\n')
    (tmp_path / "broken.py").write_text(
        'import nothing_there\n@method("odd", group="g", question="q?")\ndef g():\n    pass\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [EntryPoint(name, name, method_index.ENTRY_POINTS) for name in ("takes_heads", "missing", "broken")]
    monkeypatch.setattr(method_index, "entry_points", lambda group: points)
    index.cache_clear()
    try:
        found = index()
        assert "already one of Tunescope itself" in found.broken["takes_heads"] and "missing" in found.broken
        assert found.named("heads") is not None and found.named("heads").plugin == ""
        with pytest.raises(UserError, match="plug-in 'broken', which brings the method 'odd', cannot be imported"):
            load_method("odd")
    finally:
        index.cache_clear()


def test_a_plugins_intervention_is_written_in_files_and_kept_in_recipes(tmp_path: Path) -> None:
    """One file: found for experiments, given random stand-ins, saved in a recipe, and said as YAML again."""
    code = """
import torch, interventions as iv, probes
from tests.tiny import tiny_model, token_batch, tokenizer
from tunescope.experiments import recipe_of, recipe_spec
from workbench.models.pair import load_pair
pair = load_pair(tiny_model("llama"), tiny_model("llama", 1), tokenizer=tokenizer(), check=False)
said = [{"kind": "Nudge", "layer": 1, "direction": [1.0] * 64, "share": 0.5}]
recipe = recipe_of(said, pair)
recipe.save("r.safetensors")
assert iv.Recipe.load("r.safetensors", pair.tuned) == recipe
assert recipe_spec(recipe).plain() == said, recipe_spec(recipe).plain()
batch = token_batch(2, 7)
plain = pair.tuned.forward(batch)
with recipe.applied(pair.tuned):
    assert not torch.equal(pair.tuned.forward(batch), plain)
assert torch.equal(pair.tuned.forward(batch), plain)
assert len(probes.stand_ins(recipe, pair.tuned, ["the fox"], 10)) == 10
"""
    path = os.pathsep.join([str(ROOT), str(PLUGIN)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_plugins_behaviour_is_a_metric_by_its_name() -> None:
    code = """
import workbench as wb
from tests.tiny import tiny_model, tokenizer
from workbench.models.pair import load_pair
thanks = wb.behaviour("thanks")
assert (thanks("Thank you."), thanks("No."), thanks.share) == (1.0, 0.0, True)
pair = load_pair(tiny_model("llama"), tiny_model("llama", 1), tokenizer=tokenizer(), check=False)
rows = ["the fox", "the dog"]
frame = wb.behaviour_diff(pair, rows, metrics=["thanks", "refusal"], max_new_tokens=2).frame()
assert {"thanks", "refusal"} <= set(frame["metric"]), frame
try:
    wb.behaviour("thank")
except wb.UserError as refused:
    assert "Did you mean 'thanks'" in str(refused)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(PLUGIN)])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
