"""``tunescope steer`` and ``tunescope recipe``: the same as the library gives, and nothing a model wrote is obeyed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from interventions.concept_ablation import ConceptAblation
from interventions.exchange.control_vectors import from_gguf
from interventions.heads import HeadOffset
from interventions.logit_shift import LogitShift
from interventions.offset import Offset
from interventions.recipe import Recipe
from interventions.sweep import steered_texts, swept
from interventions.weightspace.graft import Graft
from tests.tiny import tiny_model, tokenizer, tuned_copy
from tunescope.cli import recipe as recipe_module
from tunescope.cli.steer import steer
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_one, load_pair

CLI = CliRunner()
STEER = typer.Typer()
STEER.command()(steer)
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
PROMPTS = ["the quick brown fox", "jumps over the"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_model("llama")
    for name, hf in {"base": base, "tuned": tuned_copy(base)}.items():
        hf.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    generator = torch.Generator().manual_seed(5)
    vector = torch.randn(64, generator=generator) * 3
    Recipe([Offset(1, vector, positions="last+generated")]).save(folder / "recipe.safetensors")
    Recipe([Offset(1, vector)]).save(folder / "everywhere.safetensors")
    return folder


def run(*arguments: Any) -> dict[str, Any]:
    result = CLI.invoke(STEER, [*map(str, arguments), "--json", "--max-new-tokens", "6", "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_command_says_what_the_library_generates(home: Path) -> None:
    arguments = [home / "base", "--tuned", home / "tuned", "--recipe", home / "recipe.safetensors"]
    arguments += [item for prompt in PROMPTS for item in ("--prompt", prompt)]
    found = run(*arguments, "--strengths", "-2,0,1")
    pair = load_pair(str(home / "base"), str(home / "tuned"), dtype="float32", check=False)
    recipe = Recipe.load(home / "recipe.safetensors")
    for number, row in enumerate(found["rows"]):
        assert row["prompt"] == PROMPTS[number]
        for side, model in pair.models.items():
            assert row[side] == model.generate([PROMPTS[number]], max_new_tokens=6)[0]
        assert [one["strength"] for one in row["steered"]] == [-2.0, 0.0, 1.0]
        assert row["steered"][1]["text"] == row["tuned"]
        for steered in row["steered"]:
            with (recipe * steered["strength"]).applied(pair.tuned):
                assert steered["text"] == pair.tuned.generate([PROMPTS[number]], max_new_tokens=6)[0]
    steered_base = run(*arguments, "--on", "base", "--strengths", "0")
    assert steered_base["rows"][0]["steered"][0]["text"] == steered_base["rows"][0]["base"]


def test_one_model_alone_and_a_table(home: Path) -> None:
    found = run(home / "base", "--recipe", home / "everywhere.safetensors", "--prompt", PROMPTS[0])
    assert set(found["rows"][0]) == {"prompt", "model", "steered"} and found["on"] == "model"
    shown = CLI.invoke(
        STEER,
        [str(home / "base"), "--recipe", str(home / "everywhere.safetensors"), "--prompt", "[bold]\x1b[31mred",
         "--max-new-tokens", "3"],
    )  # fmt: skip
    assert shown.exit_code == 0 and "\x1b" not in shown.stdout and r"[bold]\x1b[31mred" in shown.stdout


@pytest.mark.parametrize(
    "extra",
    [["--strengths", "a,b"], ["--on", "left"], ["--max-new-tokens", "0"], ["--prompts", "also.txt"]],
)
def test_wrong_use_is_exit_code_2(home: Path, extra: list[str]) -> None:
    arguments = [str(home / "base"), "--recipe", str(home / "recipe.safetensors"), "--prompt", "a", *extra]
    assert CLI.invoke(STEER, arguments).exit_code == 2


@pytest.fixture(scope="module")
def proxy(home: Path) -> Path:
    """A large model beside the pair, and recipes that shift its logits by the pair's difference."""
    large = tiny_model("llama", seed=7, intermediate_size=96)
    large.save_pretrained(home / "large")
    tokenizer().save_pretrained(home / "large")
    pair = load_pair(str(home / "base"), str(home / "tuned"), dtype="float32", check=False)
    shift = LogitShift(pair.tuned, pair.base, alpha=2.0)
    offset = Offset(1, torch.ones(64), positions="last+generated")
    Recipe([offset, shift]).save(home / "proxy.safetensors")
    return home


def test_a_logit_shift_reads_along_with_the_models_it_names(proxy: Path) -> None:
    file, asked = proxy / "proxy.safetensors", ["--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--strengths", "0,1"]
    other = ["--shift-tuned", proxy / "tuned", "--shift-base", proxy / "base"]
    found = run(proxy / "large", "--recipe", file, *other, *asked)
    large = load_one(str(proxy / "large"), dtype="float32")
    pair = load_pair(str(proxy / "base"), str(proxy / "tuned"), dtype="float32", check=False)
    offset, shift = Recipe.load(file)
    assert isinstance(shift, LogitShift)
    bound = Recipe([offset, shift.with_models(tuned=pair.tuned, base=pair.base)])
    want = steered_texts(large, bound, PROMPTS, [0.0, 1.0], max_new_tokens=6)
    assert [[steered["text"] for steered in row["steered"]] for row in found["rows"]] == want
    assert [row["steered"][0]["text"] for row in found["rows"]] == [row["model"] for row in found["rows"]]
    assert any(first != second for first, second in want)


def test_the_models_that_are_steered_are_known_by_their_weights(proxy: Path) -> None:
    """On the pair itself no option is needed; one that is missing can be given alone."""
    asked = ["--recipe", proxy / "proxy.safetensors", "--prompt", PROMPTS[0]]
    both = run(proxy / "base", "--tuned", proxy / "tuned", *asked, "--on", "base")
    alone = run(proxy / "base", *asked, "--shift-tuned", proxy / "tuned")
    assert both["rows"][0]["steered"] == alone["rows"][0]["steered"]
    assert both["rows"][0]["steered"][0]["text"] != both["rows"][0]["base"]


@pytest.mark.parametrize(
    ("recipe", "extra", "said"),
    [
        ("proxy", [], r"shifts logits by a tuned model, .*, which is none of .*: give it with --shift-tuned\."),
        ("proxy", ["--shift-tuned", "tuned"], r"by a base model, .*: give it with --shift-base\."),
        ("proxy", ["--shift-tuned", "base", "--shift-base", "base"], "The tuned model .* has other weights than"),
        ("proxy", ["--shift-tuned", "none", "--shift-base", "base"], "none"),
        ("everywhere", ["--shift-base", "base"], r"shifts no logits by other models: leave --shift-base out\."),
    ],
)
def test_a_model_that_a_shift_lacks_is_a_sentence(proxy: Path, recipe: str, extra: list[str], said: str) -> None:
    places = [one if one.startswith("--") else str(proxy / one) for one in extra]
    arguments = [str(proxy / "large"), "--recipe", str(proxy / f"{recipe}.safetensors"), "--prompt", "a", *places]
    outcome = CLI.invoke(STEER, [*arguments, "--dtype", "float32"])
    assert outcome.exit_code == 1 and isinstance(outcome.exception, UserError)
    assert re.search(said, str(outcome.exception)) and "\n" not in str(outcome.exception)


def test_show_check_export(home: Path, tmp_path: Path) -> None:
    app, file = recipe_module.app, str(home / "everywhere.safetensors")
    shown = json.loads(CLI.invoke(app, ["show", file, "--json"]).stdout)
    assert [intervention["kind"] for intervention in shown["interventions"]] == ["Offset"]
    assert shown["content"] == Recipe.load(home / "everywhere.safetensors").content
    assert "Offset" in CLI.invoke(app, ["show", file]).stdout
    fits = CLI.invoke(app, ["check", file, str(home / "base"), "--json"])
    assert json.loads(fits.stdout)["fits"] is True
    out = tmp_path / "v.gguf"
    made = CLI.invoke(app, ["export", file, str(out), "--to", "gguf", "--model", str(home / "base")])
    assert made.exit_code == 0, made.output
    assert len(from_gguf(out)) == 1
    assert json.loads(CLI.invoke(app, ["show", str(out), "--json"]).stdout)["interventions"][0]["kind"] == "Offset"
    Recipe([HeadOffset({"L0H0": torch.ones(16)})]).save(tmp_path / "heads.safetensors")
    for to in ("model", "adapter"):
        arguments = ["export", str(tmp_path / "heads.safetensors"), str(tmp_path / to), "--to", to]
        made = CLI.invoke(app, [*arguments, "--model", str(home / "base")])
        assert made.exit_code == 0, made.exception
        assert (tmp_path / to).is_dir()
    half = [
        "export",
        str(tmp_path / "heads.safetensors"),
        str(tmp_path / "half"),
        "--to",
        "model",
        "--dtype",
        "bfloat16",
    ]
    assert CLI.invoke(app, [*half, "--model", str(home / "base")]).exit_code == 0
    assert {one.dtype for one in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    assert CLI.invoke(app, ["export", file, str(out), "--to", "onnx", "--model", "x"]).exit_code == 2


def test_misfits_raise_the_users_error(home: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.safetensors"
    Recipe([Offset(1, torch.ones(32))]).save(wide)
    result = CLI.invoke(recipe_module.app, ["check", str(wide), str(home / "base")])
    assert result.exit_code == 1 and isinstance(result.exception, UserError)
    assert isinstance(CLI.invoke(recipe_module.app, ["show", str(tmp_path / "none")]).exception, UserError)


def test_a_sweep_is_one_batch_equal_to_its_single_runs() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    recipe = Recipe([Offset(1, torch.randn(64) * 3), ConceptAblation(2, torch.randn(64))])
    found = steered_texts(model, recipe, PROMPTS, [0.0, 0.5, 1.0], max_new_tokens=5)
    for row, prompt in zip(found, PROMPTS, strict=True):
        for strength, text in zip([0.0, 0.5, 1.0], row, strict=True):
            assert steered_texts(model, recipe, [prompt], [strength], max_new_tokens=5) == [[text]]
    assert len({text for row in found for text in row}) > 3


def test_without_a_length_texts_have_64_new_tokens(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a word from transformers; as many as there are positions, and as many as the model's own config says."""
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    model.inner.generation_config.eos_token_id = None
    recipe = Recipe([Offset(1, torch.randn(64))])
    assert steered_texts(model, recipe, PROMPTS) == steered_texts(model, recipe, PROMPTS, max_new_tokens=64)
    assert model.generate_ids(model.encode(PROMPTS[:1])).shape[1] == len(model.encode(PROMPTS[:1]).input_ids[0]) + 64
    assert model.generate_ids(model.encode(["the quick " * 110])).shape[1] == 256
    model.inner.generation_config.max_new_tokens = 3
    assert model.generate(PROMPTS) == model.generate(PROMPTS, max_new_tokens=3)
    said = capfd.readouterr()
    assert "max_length" not in said.out + said.err


def test_weights_are_swept_run_by_run() -> None:
    hf = tiny_model("llama")
    pair = load_pair(hf, tuned_copy(hf), tokenizer=tokenizer(), check=False)
    graft = Recipe([Graft.from_pair(pair)])
    found = steered_texts(pair.base, graft, PROMPTS, [0.0, 1.0], max_new_tokens=5)
    wanted = [model.generate(PROMPTS, max_new_tokens=5) for model in (pair.base, pair.tuned)]
    assert found == [list(texts) for texts in zip(*wanted, strict=True)]
    with pytest.raises(NotSupported, match="run by run"):
        swept(graft, [1.0])
    with pytest.raises(NotSupported, match="per row already"):
        swept(Recipe([Offset(1, torch.ones(64), strength=[1.0, 2.0])]), [1.0])
    with pytest.raises(UserError, match="no strength"):
        steered_texts(pair.base, graft, PROMPTS, [])
