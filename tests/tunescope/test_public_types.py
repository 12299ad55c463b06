"""What a type checker sees of ``import workbench``, ``probes``, ``interventions`` and ``tunescope``: everything, though
nothing is imported before it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import interventions as iv
import probes
import tunescope
import workbench as wb

ROOT = Path(__file__).resolve().parents[2]
RIGHT = """
import interventions as iv
import probes
import tunescope as ts
import workbench as wb
from probes import Patching, patching
from tunescope import Prompts

pair: wb.ModelPair = wb.load_pair("base", "tuned")
rows = Prompts.of(["one", "two"])
found: Patching = patching(pair, rows, "heads", metric="prob", method="attribution", confirm=0.2, seed=1)
graft: probes.GraftResult = ts.probes.graft(pair, rows, level="heads", epochs=3)
recipe = iv.Recipe([iv.ExpertSwitch(off=["L0E1"], mode="drop")])
diff = wb.behaviour_diff(pair, rows, recipe, metrics=["kl"], max_new_tokens=4, batch_size=8)
reveal_type(diff)
names: list[str] = [*ts.__all__, *wb.__all__, wb.__version__]
"""
WRONG = {
    "iv.Ofset(layer=3)": 'has no attribute "Ofset"',
    'probes.patching(pair, [], wath="z")': 'Unexpected keyword argument "wath"',
    'probes.patching(pair, [], method="atribution")': "incompatible type \"Literal['atribution']\"",
    "probes.graft(pair, [], epocs=3)": 'Unexpected keyword argument "epocs"',
    "probes.patching(pair, []).frmae()": 'has no attribute "frmae"',
    'iv.ExpertSwitch(off=["L0E1"], mode="dorp")': "incompatible type \"Literal['dorp']\"",
    'wb.behaviour_diff(pair, [], metric=["kl"])': 'Unexpected keyword argument "metric"',
    "wb.known_unknown(pair, [], samples=3)": 'Unexpected keyword argument "samples"',
    'ts.load_par("base", "tuned")': 'has no attribute "load_par"',
    "ts.probes.logit_lens(pair, [], lyers=[1])": 'Unexpected keyword argument "lyers"',
}


def checked(script: Path, cache: Path) -> list[str]:
    """What mypy --strict, with the settings of this repository for third parties, says of a user's script."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache)]
    done = subprocess.run(
        [*command, "--follow-imports=silent", str(script)], capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return [line.split(f"{script.name}:")[-1] for line in done.stdout.splitlines() if script.name in line]


@pytest.mark.slow
def test_mistakes_in_a_users_script_are_found_and_a_right_one_passes(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    right, wrong = tmp_path / "right_script.py", tmp_path / "wrong_script.py"
    right.write_text(RIGHT)
    head = "import interventions as iv\nimport probes\nimport tunescope as ts\nimport workbench as wb\n"
    head += 'pair = wb.load_pair("base", "tuned")\n'
    wrong.write_text(head + "\n".join(WRONG) + "\n")
    (said,) = checked(right, tmp_path / "cache")
    assert "note: Revealed type" in said and "BehaviourDiff" in said
    found = dict(line.split(": ", 1) for line in checked(wrong, tmp_path / "cache") if "note:" not in line)
    for at, (line, message) in enumerate(WRONG.items(), head.count("\n") + 1):
        assert message in found.get(str(at), ""), (line, found)
    assert len(found) == len(WRONG)


def test_a_name_that_is_not_there_is_answered_with_the_closest() -> None:
    with pytest.raises(
        AttributeError, match=r"^module 'probes' has no attribute 'patchin'; did you mean 'patching'\?$"
    ):
        _ = probes.patchin  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"did you mean 'Offset'\?"):
        _ = iv.Ofset  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"'workbench' .* did you mean 'load_pair'\?"):
        _ = wb.load_pai  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"'tunescope' .* did you mean 'record'\?"):
        _ = tunescope.recrod  # type: ignore[attr-defined]
    assert not hasattr(probes, "__wrapped__")


def test_the_stubs_are_those_that_make_stubs_writes() -> None:
    pytest.importorskip("ruff")
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci/stubs.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_nothing_is_imported_before_it_is_used() -> None:
    code = "import sys, tunescope, probes, interventions, workbench; dir(probes); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
