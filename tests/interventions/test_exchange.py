"""Recipes in other tools' formats: equal to the hooked model where exact, refused with a reason where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from interventions.clamp import Clamp
from interventions.concept_ablation import ConceptAblation
from interventions.exchange.adapter import to_adapter
from interventions.exchange.bake import bake, baked
from interventions.exchange.biases import output_projection
from interventions.exchange.control_vectors import from_gguf, to_gguf
from interventions.exchange.vectors import from_steering_vectors, from_tensors
from interventions.heads import HeadOffset, HeadScale
from interventions.offset import Offset
from interventions.recipe import Recipe
from interventions.weightspace.adapter_scale import AdapterScale
from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*lora_bias=True.*"),
]

IDS = token_batch(length=10)
WITH_BIAS = ("llama", "qwen3", "gemma2", "gpt2", "neox", "olmo2", "qwen3moe", "olmoe", "dsv3", "gptoss")
WITHOUT_BIAS = ("mistral", "qwen2", "phi3", "mixtral")


@pytest.fixture(autouse=True)
def _other_directions() -> None:
    """The tiny models draw their embeddings from seed 0; directions equal to an embedding leave only rounding."""
    torch.manual_seed(1234)


def model_of(family: str = "llama", **options: Any) -> AdaptedModel:
    return AdaptedModel(tiny_model(family, **options), tokenizer())


def hooked(model: AdaptedModel, recipe: Recipe) -> torch.Tensor:
    with recipe.applied(model):
        found = model.forward(IDS)
    assert found is not None
    return found


def plain(hf: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf(IDS, use_cache=False).logits


def head_recipe(model: AdaptedModel) -> Recipe:
    first, second = torch.randn(model.d_head), torch.randn(model.d_head)
    return Recipe([HeadOffset({"L0H1": first, "L2H3": second}), HeadOffset({"L0H2": second}, strength=-0.5)])


@pytest.mark.parametrize("family", WITH_BIAS)
def test_head_offsets_as_a_bias_equal_the_hooks(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    before = plain(model.hf)
    recipe = head_recipe(model)
    folder = bake(model, recipe, tmp_path / "baked")
    again = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(plain(again), hooked(model, recipe), rtol=1e-4, atol=2e-4)
    assert not torch.allclose(plain(again), before, atol=1e-2)
    assert torch.equal(plain(model.hf), before)


def test_the_unprojected_offset_as_a_bias_is_wrong() -> None:
    """The slip of ITI's release: the shapes coincide, so nothing fails, and the model is another."""
    model = model_of(dtype=torch.float64)
    recipe = Recipe([HeadOffset({f"L1H{head}": torch.randn(16, dtype=torch.float64) for head in range(4)})])
    right = baked(model, recipe)
    torch.testing.assert_close(plain(right), hooked(model, recipe), rtol=1e-10, atol=1e-10)
    (one,) = recipe.interventions
    assert isinstance(one, HeadOffset)
    unprojected = torch.cat([one.vectors[f"L1H{head}"] for head in range(4)])
    with torch.no_grad():
        output_projection(AdaptedModel(right, None), 1).bias.copy_(unprojected)
    assert float((plain(right) - hooked(model, recipe)).abs().max()) > 0.1


@pytest.mark.parametrize("family", WITHOUT_BIAS)
def test_families_without_such_a_bias_say_so_and_take_an_adapter(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    recipe = head_recipe(model)
    with pytest.raises(NotSupported, match="no bias on its attention output projection"):
        baked(model, recipe)
    before = plain(model.hf)
    folder = to_adapter(model, recipe, tmp_path / "adapter")
    assert torch.equal(plain(model.hf), before) and not hasattr(model.hf, "peft_config")
    again = peft.PeftModel.from_pretrained(tiny_model(family), str(folder)).eval()
    torch.testing.assert_close(plain(again), hooked(model, recipe), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("order", [1, -1])
def test_scales_and_offsets_keep_their_order(order: int) -> None:
    model = model_of()
    parts = [HeadOffset({"L1H2": torch.ones(16)}), HeadScale({"L1H2": -2.0, "L1H0": torch.rand(16)})]
    recipe = Recipe(parts[::order])
    torch.testing.assert_close(plain(baked(model, recipe)), hooked(model, recipe), rtol=1e-4, atol=2e-4)


def test_offsets_of_the_attention_output_are_biases_too() -> None:
    model = model_of()
    recipe = Recipe([Offset(1, torch.randn(64), site="attn_out"), Offset(2, torch.randn(64), site="resid_mid")])
    torch.testing.assert_close(plain(baked(model, recipe)), hooked(model, recipe), rtol=1e-4, atol=2e-4)
    with pytest.raises(NotSupported, match="norm first"):
        baked(model_of("gemma2"), Recipe([Offset(1, torch.randn(64), site="attn_out")]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "neox"])
@pytest.mark.parametrize("tied", [False, True])
def test_ablations_that_are_exact_in_the_weights(family: str, tied: bool) -> None:
    model = model_of(family)
    if tied:
        model.hf.config.tie_word_embeddings = True
        model.hf.tie_weights()
    directions = torch.randn(2, 64)
    single = [ConceptAblation(1, directions, site="attn_out"), ConceptAblation(0, directions[:1], site="mlp_out")]
    recipe = Recipe([*single, ConceptAblation(0, directions, site="resid_pre")])
    torch.testing.assert_close(plain(baked(model, recipe)), hooked(model, recipe), rtol=1e-4, atol=5e-4)
    half = Recipe([ConceptAblation(1, directions, site="attn_out", strength=0.5)])
    torch.testing.assert_close(plain(baked(model, half)), hooked(model, half), rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ablating_the_whole_stream_is_projecting_every_writer(family: str, tmp_path: Path) -> None:
    model, directions = model_of(family), torch.randn(3, 64)
    everywhere = [ConceptAblation(0, directions, site="resid_pre")]
    everywhere += [
        ConceptAblation(layer, directions, site=site) for layer in range(3) for site in ("resid_mid", "resid_post")
    ]
    recipe = Recipe(everywhere)
    again = AutoModelForCausalLM.from_pretrained(bake(model, recipe, tmp_path / "baked"))
    torch.testing.assert_close(plain(again), hooked(model, recipe), rtol=1e-4, atol=5e-4)
    with pytest.raises(NotSupported, match="passes each layer without a weight"):
        baked(model, Recipe(everywhere[:-1]))


@pytest.mark.parametrize(
    ("family", "one", "words"),
    [
        ("llama", ConceptAblation(1, torch.ones(64)), "without a weight"),
        ("llama", ConceptAblation(1, torch.ones(64), site="attn_out", mean=torch.ones(64)), "mean"),
        ("gemma2", ConceptAblation(1, torch.ones(64), site="attn_out"), "norm first"),
        ("qwen3moe", ConceptAblation(1, torch.ones(64), site="mlp_out"), "mixture of experts"),
        ("llama", Offset(1, torch.ones(64)), "no exact place"),
        ("llama", HeadOffset({"L0H0": torch.ones(16)}, positions="generated"), "some positions"),
        ("llama", HeadOffset({"L0H0": torch.ones(16)}, strength=[1.0, 2.0]), "per row"),
        ("llama", Clamp(1, torch.ones(64), low=-1.0, high=1.0), "no exact counterpart"),
    ],
)
def test_what_is_not_exact_is_refused(family: str, one: Any, words: str) -> None:
    with pytest.raises(NotSupported, match=words):
        baked(model_of(family), Recipe([one]))


def test_baking_leaves_no_half_written_folder(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="exists already"):
        bake(model_of(), head_recipe(model_of()), tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_head_scales_as_an_adapter(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    recipe = Recipe(
        [HeadScale({"L0H1": 0.0, "L1H2": torch.rand(16)}), HeadScale({"L0H1": 0.5, "L2H0": 2.0}, strength=0.5)]
    )
    folder = to_adapter(model, recipe, tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(tiny_model(family), str(folder)).eval()
    torch.testing.assert_close(plain(again), hooked(model, recipe), rtol=1e-4, atol=2e-4)


def test_a_scaled_adapter_is_saved_as_an_adapter(tmp_path: Path) -> None:
    hf = tiny_model("llama")
    tuned = peft.get_peft_model(hf, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    pair = load_pair(hf, tuned, tokenizer=tokenizer(), check=False)
    recipe = Recipe([AdapterScale(0.5, layers={0: 0.0}, modules={"v_proj": 2.0}, ranks=[1.0, 0.0, -1.0, 1.0])])
    wanted, before = hooked(pair.tuned, recipe), pair.tuned.forward(IDS)
    folder = to_adapter(pair.tuned, recipe, tmp_path / "adapter")
    assert before is not None and torch.equal(before, pair.tuned.forward(IDS))
    again = peft.PeftModel.from_pretrained(tiny_model("llama"), str(folder)).eval()
    torch.testing.assert_close(plain(again), wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_baking_an_adapter_pairs_side_merges_or_leaves_out_the_adapter(side: str) -> None:
    hf = tiny_model("llama")
    tuned = peft.get_peft_model(hf, peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj"])).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model = load_pair(hf, tuned, tokenizer=tokenizer(), check=False).models[side]
    recipe = head_recipe(model)
    made = baked(model, recipe)
    assert not hasattr(made, "peft_config") and type(made) is type(hf)
    torch.testing.assert_close(plain(made), hooked(model, recipe), rtol=1e-3, atol=1e-3)


def test_adapters_refuse_what_they_are_not(tmp_path: Path) -> None:
    model = model_of()
    for one, words in (
        (ConceptAblation(1, torch.ones(64)), "no PEFT adapter"),
        (HeadScale({"L0H0": 0.0}, positions="last"), "some positions"),
    ):
        with pytest.raises(NotSupported, match=words):
            to_adapter(model, Recipe([one]), tmp_path / "adapter")
    mixed = Recipe([HeadScale({"L0H0": 0.0}), HeadOffset({"L0H0": torch.ones(16)})])
    with pytest.raises(NotSupported, match="one type"):
        to_adapter(model, mixed, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_control_vectors_round_trip(tmp_path: Path) -> None:
    model = model_of()
    one, two = torch.randn(64), torch.randn(64)
    recipe = Recipe([Offset(1, one, strength=2.0), Offset(2, two), Offset(2, one, site="resid_pre", strength=-1.0)])
    path = to_gguf(recipe, tmp_path / "vector.gguf", model)
    again = from_gguf(path)
    assert [(o.layer, o.site) for o in again] == [(1, "resid_post"), (2, "resid_post")]  # type: ignore[attr-defined]
    torch.testing.assert_close(hooked(model, again), hooked(model, recipe), rtol=1e-4, atol=1e-4)
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert set(tensors) == {"direction.1", "direction.2"}
    assert all(tensor.dtype == np.float32 and tensor.shape == (64,) for tensor in tensors.values())
    np.testing.assert_allclose(tensors["direction.1"], (2 * one - one).numpy(), rtol=1e-6)
    hint = reader.get_field("controlvector.model_hint")
    assert hint is not None and hint.contents() == "llama"
    second = to_gguf(again, tmp_path / "again.gguf", model)
    assert second.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (Offset(0, torch.ones(64)), "from block 1 on"),
        (Offset(0, torch.ones(64), site="resid_pre"), "embeddings"),
        (Offset(1, torch.ones(64), site="attn_out"), "output of a block"),
        (Offset(1, torch.ones(64), positions="generated"), "every token"),
        (Offset(1, torch.ones(64), units="fraction"), "depends on the token"),
        (Offset(1, torch.ones(64), strength=[1.0, 2.0]), "depends on the token or on the row"),
        (HeadOffset({"L1H0": torch.ones(16)}), "only Offset"),
    ],
)
def test_what_a_control_vector_cannot_say(one: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match=words):
        to_gguf(Recipe([one]), tmp_path / "v.gguf", model_of())
    assert list(tmp_path.iterdir()) == []


def write_gguf(path: Path, tensors: dict[str, np.ndarray], architecture: str = "controlvector") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_bad_control_vectors_are_refused_in_words(tmp_path: Path) -> None:
    good = np.ones(8, dtype=np.float32)
    cases = {
        "other architecture": write_gguf(tmp_path / "a.gguf", {"direction.1": good}, "llama"),
        "F32": write_gguf(tmp_path / "b.gguf", {"direction.1": good.astype(np.float16)}),
        "different widths": write_gguf(
            tmp_path / "c.gguf", {"direction.1": good, "direction.2": np.ones(9, np.float32)}
        ),
        "tensor 'foo'": write_gguf(tmp_path / "d.gguf", {"foo": good}),
        "NaN": write_gguf(tmp_path / "e.gguf", {"direction.1": good * np.nan}),
    }
    truncated = tmp_path / "t.gguf"
    truncated.write_bytes(cases["NaN"].read_bytes()[:60])
    cases |= {"not a whole GGUF": truncated, "no file": tmp_path / "none.gguf"}
    (tmp_path / "text.gguf").write_text("hello, this is no gguf file at all")
    cases["not a whole GGUF file"] = tmp_path / "text.gguf"
    for words, path in cases.items():
        with pytest.raises(UserError, match="not a control vector" if words == "other architecture" else words):
            from_gguf(path)


def test_plain_tensors_and_foreign_objects() -> None:
    recipe = from_tensors({2: [1.0] * 64, 1: np.ones((1, 64), dtype=np.float32)}, site="mlp_out", strength=0.5)
    assert [(intervention.layer, intervention.site, intervention.strength) for intervention in recipe] == [
        (1, "mlp_out", 0.5),
        (2, "mlp_out", 0.5),
    ]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no SteeringVector"):
        from_steering_vectors(object())
    with pytest.raises(UserError, match="no vectors"):
        from_tensors({})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weak", [1.0, 1e-3])
def test_half_precision_is_baked_as_if_by_hand(dtype: torch.dtype, weak: float) -> None:
    """The fold in float64, rounded once: the same weights, bit for bit, however little the recipe moves."""
    model = AdaptedModel(tiny_model("llama").to(dtype), None)
    scale = 1 - weak / 2
    made = baked(model, Recipe([HeadScale({"L1H2": scale})]))
    assert made.dtype == dtype == made.model.rotary_emb.inv_freq.dtype
    wanted = {name: one.clone() for name, one in model.inner.state_dict().items()}
    columns = wanted["model.layers.1.self_attn.o_proj.weight"]
    columns[:, 32:48] = (columns[:, 32:48].double() * scale).to(dtype)
    for name, one in made.state_dict().items():
        assert torch.equal(one, wanted[name]), name


def test_an_offset_is_baked_into_a_model_that_was_cast_with_its_rotary_frequencies() -> None:
    model = AdaptedModel(tiny_model("llama").to(torch.bfloat16), None)
    vector = 0.3 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    made = baked(model, Recipe([Offset(1, vector, site="attn_out")]))
    assert torch.equal(made.model.layers[1].self_attn.o_proj.bias, vector.to(torch.bfloat16))
    assert torch.equal(made.model.rotary_emb.inv_freq, model.inner.model.rotary_emb.inv_freq)


def test_half_precision_hides_no_wrong_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that is off by a hundredth is refused in bfloat16 as it is in float32."""
    from interventions.exchange import bake as module

    model = AdaptedModel(tiny_model("llama").to(torch.bfloat16), None)
    right = module._fold_heads
    recipe = Recipe([HeadScale({"L1H2": 0.0, "L0H1": 3.0})])
    monkeypatch.setattr(module, "_fold_heads", lambda target, one: right(target, one * 0.99))
    with pytest.raises(NotSupported, match="would not compute what the recipe does"):
        baked(model, recipe)


def test_an_untied_head_of_half_precision_is_rounded_too() -> None:
    torch.manual_seed(0)
    hf = tiny_model("llama", tie_word_embeddings=True).to(torch.bfloat16)
    direction = torch.randn(64)
    sites = [(0, "resid_pre"), *((layer, site) for layer in range(3) for site in ("resid_mid", "resid_post"))]
    recipe = Recipe([ConceptAblation(layer, direction, site=site) for layer, site in sites])
    made = baked(AdaptedModel(hf, None), recipe)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        made(torch.arange(5)[None])
