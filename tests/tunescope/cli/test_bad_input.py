"""Bad input to ``tunescope record``: one clear sentence each, exit code 1, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model, tokenizer, tuned_copy
from tunescope.cli import run
from workbench import runs
from workbench.recording.recording import NonFiniteWarning, Recording

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad models and prompts, each named for what it is."""
    home = tmp_path_factory.mktemp("home")
    base = tiny_model("llama")
    damaged = tuned_copy(base)
    with torch.no_grad():
        damaged.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    models = {
        "base": base, "tuned": tuned_copy(base), "nan": damaged, "gpt2": tiny_model("gpt2"),
        "narrow": tiny_model("llama", hidden_size=32),
    }  # fmt: skip
    for name, model in models.items():
        model.save_pretrained(home / name)
        tokenizer().save_pretrained(home / name)
    for name in ("other-tokens", "bad-tokenizer", "pickle", "remote"):
        shutil.copytree(home / "tuned", home / name)
    words = json.loads((home / "base" / "tokenizer.json").read_text())
    vocab = words["model"]["vocab"]
    one, two = list(vocab)[10:12]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (home / "other-tokens" / "tokenizer.json").write_text(json.dumps(words))
    (home / "bad-tokenizer" / "tokenizer.json").write_text(json.dumps({**words, "model": {"type": "Future"}}))
    (home / "pickle" / "model.safetensors").unlink()
    torch.save(base.state_dict(), home / "pickle" / "pytorch_model.bin")
    config = json.loads((home / "remote" / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
    (home / "remote" / "config.json").write_text(json.dumps(config))
    _adapter(home / "foreign")
    (home / "p.jsonl").write_text('{"prompt": "the quick"}\n{"prompt": "the lazy dog"}\n')
    (home / "broken.jsonl").write_text('{"prompt": "the"}\n{"prompt": \n')
    (home / "empty.jsonl").write_text("")
    (home / "long.jsonl").write_text('{"prompt": "the"}\n' + json.dumps({"prompt": "the quick brown fox " * 400}))
    (home / "file").write_text("a file")
    return home


def _adapter(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny_model("llama", hidden_size=32), config).save_pretrained(folder)


CASES: dict[str, tuple[dict[str, str], str]] = {
    "missing folder": ({"base": "./bas"}, "There is no base model ./bas. Did you mean base?"),
    "missing file": ({"prompts": "q.jsonl"}, "There is no file q.jsonl."),
    "a file for a folder": ({"tuned": "file"}, "file is a file; give the folder"),
    "another architecture": ({"tuned": "gpt2"}, "model_type is 'llama' in the base and 'gpt2' in the tuned"),
    "another width": ({"tuned": "narrow"}, "hidden_size is 64 in the base and 32 in the tuned model"),
    "another tokenizer": ({"tuned": "other-tokens"}, "2 tokens have another id in the tuned model"),
    "a damaged tokenizer": ({"tuned": "bad-tokenizer"}, "tokenizer.json cannot be read (data did not match"),
    "an adapter of another base": ({"tuned": "foreign"}, "[2, 32] in the adapter and the base's weight there is"),
    "an adapter as base": ({"base": "foreign"}, "is an adapter: give the model it was trained on"),
    "unknown site": ({"sites": "resid_pots"}, "Did you mean 'resid_post'?"),
    "unknown canonical site": ({"sites": "blocks.1.attn.hook_y"}, "Did you mean 'blocks.1.attn.hook_z'?"),
    "unknown layer": ({"layers": "9"}, "Layer 9 is out of range: the model has layers 0 to 2"),
    "unknown position": ({"positions": "lst"}, "Did you mean 'last'?"),
    "positions beyond every prompt": ({"positions": "900"}, "select no token of any prompt"),
    "empty JSONL": ({"prompts": "empty.jsonl"}, "empty.jsonl holds no prompts"),
    "malformed JSONL": ({"prompts": "broken.jsonl"}, "broken.jsonl, line 2 is not JSON"),
    "prompt beyond the context": ({"prompts": "long.jsonl"}, "Prompt 1 has 1602 tokens and the limit is 256"),
    "pickle": ({"tuned": "pickle"}, "only as pickle (pytorch_model.bin)"),
    "remote code": ({"tuned": "remote"}, "--trust-remote-code"),
    "output in the way": ({"out": "file"}, "exists and is no run; give a new or an empty folder"),
    "output below a file": ({"out": "file/run"}, "a file is where a folder should be"),
    "unknown backend": ({"backend": "ndfi"}, "Did you mean 'ndif'?"),
    "a folder for the service": ({"backend": "ndif"}, "NDIF hosts models under hub ids"),
    "no weights for hooks": ({"device": "meta"}, "was loaded without weights"),
    "unknown dtype": ({"dtype": "flot32"}, "Did you mean 'float32'?"),
    "unknown device": ({"device": "cuda:77"}, "There is no device cuda:77 on this machine"),
}


def arguments(**change: str) -> list[str]:
    call = {"base": "base", "tuned": "tuned", "prompts": "p.jsonl", "out": "run", **change}
    options = [word for name, value in call.items() if name not in ("base", "tuned") for word in (f"--{name}", value)]
    return ["record", call["base"], call["tuned"], *options]


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_nothing_left_behind(
    home: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, sentence = CASES[case]
    monkeypatch.chdir(home)
    before = sorted(home.rglob("*"))
    assert run(arguments(**change)) == 1
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("Error: ")]
    assert sentence in line and "Traceback" not in said.err and not said.out
    assert sorted(home.rglob("*")) == before


def test_another_configuration_is_refused_and_the_run_kept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    out = str(tmp_path / "run")
    assert run(arguments(out=out)) == 0
    before = {path: path.read_bytes() for path in Path(out).rglob("*") if path.is_file()}
    assert run(arguments(out=out, sites="z")) == 1
    assert "holds results of another configuration: 'sites'" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path(out).rglob("*") if path.is_file()} == before


def test_nan_is_recorded_as_found_and_flagged(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    with pytest.warns(NonFiniteWarning, match="blocks.1.hook_resid_post of the tuned model, prompt 0"):
        assert run([*arguments(tuned="nan", out=str(tmp_path / "run"), sites="resid_post"), "--json"]) == 0
    flagged = json.loads(capsys.readouterr().out)["nonfinite"]
    assert ["tuned", "blocks.1.hook_resid_post", 1] in flagged
    assert not any(role == "base" or "blocks.0" in site for role, site, _ in flagged)
    kept = Recording.load(tmp_path / "run" / "activations")
    tuned, base = (kept[role]["resid_post", 1][:] for role in ("tuned", "base"))
    assert bool(tuned.isnan().any()) and not bool(base.isnan().any())


def test_a_full_disk_is_one_sentence(home: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from tunescope.cli import run\n"
        "import workbench.recording.job, pandas, pyarrow.parquet\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    call = arguments(out=str(tmp_path / "run"), positions="all")
    done = subprocess.run(
        [sys.executable, "-c", code, *call], cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "Error: No space left for" in done.stderr
    assert not [
        path for path in tmp_path.rglob("*") if path.name.startswith(".partial") or path.suffix == ".safetensors"
    ]


@pytest.mark.parametrize("verb", ["report", "dashboard", "runs show", "runs verify"])
def test_a_run_that_is_not_there(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (str(tmp_path / "missing"), "missing"):
        assert run([*verb.split(), given]) == 1
        said = capsys.readouterr()
        assert said.err.startswith("Error: There is no such folder") and "missing" in said.err and not said.out
    assert not list(tmp_path.iterdir())


def test_ray_is_asked_for_by_its_extra(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(home)
    assert run([*arguments(out=str(tmp_path / "run")), "--workers", "2"]) == 1
    assert "pip install 'tunescope[ray]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


SWEEP = """
name: workers
pair: {base: without-weights, tuned: tuned}
prompts: {file: p.jsonl}
steps:
  effect: {do: diff, metrics: [kl]}
"""


@pytest.mark.parametrize(
    "command",
    [
        "record without-weights tuned --prompts p.jsonl --out {out}",
        "diff without-weights tuned --prompts p.jsonl --out {out}",
        "audit without-weights tuned --out {out}",
        "localize heads without-weights tuned --prompts p.jsonl --metric kl --out {out}",
        "run workers.yaml --out {out}",
    ],
)
def test_more_workers_than_there_are_is_said_before_a_model_is_loaded(
    command: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class TwoCores:
        """A cluster that is there, as ray tells of it."""

        is_initialized = staticmethod(lambda: True)
        cluster_resources = staticmethod(lambda: {"CPU": 2.0})

    monkeypatch.setitem(sys.modules, "ray", TwoCores)
    monkeypatch.chdir(home)
    (home / "without-weights").mkdir(exist_ok=True)
    shutil.copy(home / "base" / "config.json", home / "without-weights")
    (home / "workers.yaml").write_text(SWEEP)
    call = [word.format(out=tmp_path / "run") for word in command.split()]
    assert run([*call, "--workers", "3"]) == 1
    assert "3 workers were asked for and the cluster has 2 CPUs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert run([*call, *(["--workers", "2"] if "audit" in call else [])]) == 1
    assert "workers" not in capsys.readouterr().err, "only then the weights are missed"


@pytest.mark.parametrize("executor", ["vllm", "vlm"])
def test_another_executor_is_refused_before_a_model_is_loaded(
    executor: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("workbench.placement.find_spec", lambda name: None)
    monkeypatch.chdir(home)
    assert run(arguments(out=str(tmp_path / "run"), base="none", executor=executor)) == 1
    said = capsys.readouterr().err
    assert ("pip install 'tunescope[vllm]'" if executor == "vllm" else "Did you mean 'vllm'") in said
    assert not list(tmp_path.iterdir())


def test_traces_record_what_hooks_do(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    for backend in ("hooks", "nnsight"):
        assert run(arguments(out=str(tmp_path / backend), sites="z", backend=backend)) == 0
    hooks, traced = (Recording.load(tmp_path / name / "activations") for name in ("hooks", "nnsight"))
    assert torch.equal(hooks["tuned"]["z", 2][:], traced["tuned"]["z", 2][:])


def test_a_full_gpu_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the allocator says it; tests/cuda has a real one."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has a total capacity of 4 GiB."
        )

    monkeypatch.setattr("workbench.models.adapted.AdaptedModel.generate_ids", full)
    pair, prompts = [str(home / "base"), str(home / "tuned")], ["--prompts", str(home / "p.jsonl")]
    assert run(["diff", *pair, *prompts, "--out", str(home / "d")]) == 1
    said = capsys.readouterr().err
    assert "GPU's memory ran out (CUDA out of memory. Tried to allocate 2 GiB.): use fewer or shorter prompts" in said
    assert "Traceback" not in said and runs.open(home / "d").state == "failed"


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_control_c_says_what_is_kept_and_how_to_go_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("workbench.recording.job.difference_table", _stop)
        assert run(arguments(out=str(out))) == 130
    kept = f"Interrupted. {out} keeps what is done, and the same command goes on from there.\n"
    said = capsys.readouterr()
    assert said.out == "" and said.err.endswith(kept)
    assert run(["runs", "list", "--home", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["state"] == "interrupted"
    assert run(arguments(out=str(out))) == 0 and run(["runs", "verify", str(out)]) == 0


def test_control_c_while_a_probe_runs_leaves_an_interrupted_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    out = tmp_path / "run"
    call = ["localize", "lens", "base", "tuned", "--prompts", "p.jsonl", "--out", str(out)]
    with monkeypatch.context() as patched:
        patched.setattr("tunescope.experiments.method_call.call_method", _stop)
        assert run(call) == 130
    assert capsys.readouterr().err.startswith(f"Interrupted. {out} keeps what is done")
    assert runs.open(out).state == "interrupted"
    assert run(call) == 0 and run(["runs", "verify", str(out)]) == 0


def test_control_c_while_models_are_loaded_leaves_an_interrupted_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr("tunescope.cli.diff_run.load_pair", _stop)
    out = tmp_path / "run"
    assert run(["diff", "base", "tuned", "--prompts", "p.jsonl", "--out", str(out)]) == 130
    said = f"Interrupted. {out} keeps what is done, and the same command goes on from there.\n"
    assert capsys.readouterr() == ("", said) and runs.open(out).state == "interrupted"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that nobody can write to")
@pytest.mark.parametrize("verb", ["record", "diff", "localize activations", "run"])
@pytest.mark.parametrize("folder", ["/proc/x/run", "n" * 300])
def test_a_folder_that_cannot_be_made_is_one_sentence(
    verb: str, folder: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    given = ["base", "tuned", "--prompts", "p.jsonl"]
    if verb == "run":
        text = "name: x\npair: {base: base, tuned: tuned}\nprompts: {file: p.jsonl}\nsteps: {r: {do: record}}\n"
        (home / "x.yaml").write_text(text)
        given = ["x.yaml"]
    assert run([*verb.split(), *given, "--out", folder]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert line.startswith("Error: Cannot write") and "; choose a" in line
