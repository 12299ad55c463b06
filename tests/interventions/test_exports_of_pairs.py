"""Recipes found on an adapter pair, elsewhere: a second adapter beside the first, and a module of plain torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from interventions import (
    ConceptAblation,
    Gate,
    HeadOffset,
    HeadScale,
    Offset,
    Recipe,
    to_adapter,
    to_module,
)
from interventions.exchange.certificate import certify
from interventions.exchange.exported_module import attach
from interventions.exchange.formats import reason_against
from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.errors import NotSupported, UserError
from workbench.models.pair import ModelPair, load_pair

pytestmark = pytest.mark.filterwarnings("ignore:.*lora_bias=True.*", "ignore:.*lora_B.bias.*")
IDS = token_batch(2, 12)
TARGETS = {"llama": ["q_proj", "o_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def first_adapter(family: str) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3, target_modules=TARGETS[family], init_lora_weights=False, fan_in_fan_out=family == "gpt2"
    )
    return peft.get_peft_model(tiny_model(family), config).eval()


def adapter_pair(family: str = "llama") -> ModelPair:
    made = first_adapter(family)
    return load_pair(made.get_base_model(), made, tokenizer=tokenizer(), check=False)


def steered(pair: ModelPair, recipe: Recipe, side: str = "tuned") -> torch.Tensor:
    with recipe.applied(pair.models[side]):
        logits = pair.models[side].forward(IDS)
    assert logits is not None
    return logits


def heads(model: Any) -> dict[str, Recipe]:
    torch.manual_seed(1)
    return {
        "scales": Recipe([HeadScale({"L0H1": 0.0, "L2H2": torch.rand(model.d_head)})]),
        "offsets": Recipe([
            HeadOffset({"L1H0": torch.randn(model.d_head)}, strength=0.5),
            Offset(0, torch.randn(model.d_model), site="attn_out"),
        ]),
    }  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", ["scales", "offsets"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_second_adapter_runs_beside_the_first_in_peft(tmp_path: Path, family: str, kind: str) -> None:
    pair = adapter_pair(family)
    recipe = heads(pair.tuned)[kind]
    wanted, before = steered(pair, recipe), pair.tuned.forward(IDS)
    folder = to_adapter(pair.tuned, recipe, tmp_path / "second")
    assert before is not None and torch.equal(before, pair.tuned.forward(IDS)), "exporting changed the pair"
    both = first_adapter(family)
    both.load_adapter(str(folder), "recipe")
    both.base_model.set_adapter(["default", "recipe"])
    torch.testing.assert_close(both.eval()(IDS).logits, wanted, rtol=1e-4, atol=3e-4)
    assert (wanted - before).abs().max() > 0.01
    assert certify(pair.tuned, recipe, folder, ["the quick brown fox"], max_new_tokens=3).holds


@torch.no_grad()
def test_of_the_base_of_a_pair_it_is_the_only_adapter(tmp_path: Path) -> None:
    pair = adapter_pair()
    recipe = heads(pair.base)["scales"]
    folder = to_adapter(pair.base, recipe, tmp_path / "only")
    alone = peft.PeftModel.from_pretrained(tiny_model("llama"), str(folder)).eval()
    torch.testing.assert_close(alone(IDS).logits, steered(pair, recipe, "base"), rtol=1e-4, atol=3e-4)


def test_beside_another_kind_of_adapter_it_is_refused(tmp_path: Path) -> None:
    made = peft.get_peft_model(tiny_model("llama"), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    pair = load_pair(made.get_base_model(), made.eval(), tokenizer=tokenizer(), check=False)
    with pytest.raises(NotSupported, match="IA3, and PEFT runs only LoRAs beside each other"):
        to_adapter(pair.tuned, heads(pair.tuned)["scales"], tmp_path / "second")
    assert list(tmp_path.iterdir()) == []


def mixture(pair: ModelPair) -> Recipe:
    torch.manual_seed(2)
    width = pair.tuned.d_model
    return Recipe([
        ConceptAblation(1, torch.randn(2, width), mean=torch.randn(width), strength=0.8),
        Offset(2, torch.randn(width), site="resid_pre", units="norm", site_norm=2.0),
        HeadScale({"L1H1": 0.0}), HeadOffset({"L1H1": torch.randn(pair.tuned.d_head)}),
        ConceptAblation(0, torch.randn(width), site="mlp_out"), Offset(2, torch.randn(width), site="attn_out"),
    ])  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_module_does_to_the_plain_model_what_the_recipe_does(tmp_path: Path, family: str) -> None:
    pair = adapter_pair(family)
    recipe = mixture(pair)
    folder = to_module(pair.tuned, recipe, tmp_path / "off")
    wanted, plain = steered(pair, recipe), first_adapter(family)
    before = plain(IDS).logits
    handles = attach(plain, folder)
    torch.testing.assert_close(plain(IDS).logits, wanted, rtol=1e-4, atol=3e-4)
    with recipe.applied(pair.tuned):
        written = pair.tuned.hf.generate(IDS, max_new_tokens=6, do_sample=False)
    assert torch.equal(plain.generate(IDS, max_new_tokens=6, do_sample=False), written)
    for handle in handles:
        handle.remove()
    assert torch.equal(plain(IDS).logits, before)
    assert certify(pair.tuned, recipe, folder, ["the quick brown fox"], max_new_tokens=3).holds


@torch.no_grad()
@pytest.mark.parametrize("fires", ["above", "below"])
def test_a_module_holds_gates_that_every_token_opens_for_itself(tmp_path: Path, fires: str) -> None:
    """The rows of a batch open it at other tokens; while generating, each new token decides."""
    pair = adapter_pair()
    torch.manual_seed(3)
    width = pair.tuned.d_model
    gate = Gate(0, torch.randn(width), 0.0, fires=fires, reach="token")
    push, out, off = 3 * torch.randn(width), torch.randn(width), HeadScale({"L1H1": 0.0})
    recipe = Recipe([Offset(0, push, when=gate), ConceptAblation(1, out, when=gate), off])
    folder = to_module(pair.tuned, recipe, tmp_path / "gated")
    wanted, plain = steered(pair, recipe), first_adapter("llama")
    always, shut = steered(pair, Recipe([Offset(0, push), ConceptAblation(1, out), off])), steered(pair, Recipe([off]))
    attach(plain, folder)
    torch.testing.assert_close(plain(IDS).logits, wanted, rtol=1e-4, atol=3e-4)
    assert (wanted - always).abs().max() > 1e-2 and (wanted - shut).abs().max() > 1e-2, "it opens at some tokens alone"
    with recipe.applied(pair.tuned):
        written = pair.tuned.hf.generate(IDS, max_new_tokens=6, do_sample=False)
    assert torch.equal(plain.generate(IDS, max_new_tokens=6, do_sample=False), written)


def test_the_module_needs_nothing_of_ours(tmp_path: Path) -> None:
    pair = adapter_pair()
    folder = to_module(pair.tuned, Recipe([ConceptAblation(1, torch.ones(pair.tuned.d_model))]), tmp_path / "off")
    script = (
        "import sys, torch; from exported_module import attach\n"
        "class Layer(torch.nn.Module):\n    def forward(self, hidden_states): return (hidden_states, 'cache')\n"
        "model = torch.nn.Module(); model.model = torch.nn.Module()\n"
        "model.model.layers = torch.nn.ModuleList([Layer(), Layer()])\n"
        "attach(model); out, kept = model.model.layers[1](hidden_states=torch.ones(1, 2, 64))\n"
        "assert out.abs().max() < 1e-5 and kept == 'cache'\n"
        "assert not {'interventions', 'workbench', 'tunescope'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_module_cannot_do_is_refused(tmp_path: Path) -> None:
    pair = adapter_pair()
    width = pair.tuned.d_model
    for one, words in (
        (ConceptAblation(1, torch.ones(width), site="resid_mid"), "acts at resid_mid"),
        (Offset(1, torch.ones(width), units="fraction"), "each token's norm"),
        (Offset(1, torch.ones(width), when=Gate(0, torch.ones(width), 0.0)), "behind a gate that looks back"),
    ):
        with pytest.raises(NotSupported, match=words):
            to_module(pair.tuned, Recipe([one]), tmp_path / "off")
        assert words in reason_against(Recipe([one]), "module")
    (tmp_path / "there").write_text("")
    with pytest.raises(UserError, match="exists already"):
        to_module(pair.tuned, Recipe([HeadScale({"L0H0": 0.0})]), tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@torch.no_grad()
@pytest.mark.parametrize("positions", ["last - first", "generated", "last+generated - first"])
def test_a_module_tells_the_prompt_from_what_is_written(tmp_path: Path, positions: str) -> None:
    """Of two prompts of other lengths, padded on the left: the tokens that the recipe's own generation writes."""
    pair = adapter_pair()
    torch.manual_seed(4)
    width = pair.tuned.d_model
    recipe = Recipe([
        ConceptAblation(1, torch.randn(width), mean=4 * torch.randn(width), positions=positions),
        Offset(2, 2 * torch.randn(width), positions=positions),
    ])  # fmt: skip
    folder, plain = to_module(pair.tuned, recipe, tmp_path / "off"), first_adapter("llama")
    batch = pair.tuned.encode(["the quick", "the quick brown fox jumps"])
    options = {"attention_mask": batch.attention_mask, "max_new_tokens": 6, "do_sample": False}
    before = plain.generate(batch.input_ids, **options)
    attach(plain, folder)
    with recipe.applied(pair.tuned):
        wanted = pair.tuned.hf.generate(batch.input_ids, **options)
    assert torch.equal(plain.generate(batch.input_ids, **options), wanted)
    assert not torch.equal(before, wanted)
    certificate = certify(pair.tuned, recipe, folder, ["the quick", "the brown fox"], max_new_tokens=4)
    assert certificate.holds, certificate.summary()


def test_positions_that_a_module_cannot_tell_are_named(tmp_path: Path) -> None:
    pair = adapter_pair()
    recipe = Recipe([Offset(1, torch.ones(pair.tuned.d_model), positions="prompt[1:3]")])
    with pytest.raises(NotSupported, match="positions that a module cannot tell: it knows all, last"):
        to_module(pair.tuned, recipe, tmp_path / "off")
    assert list(tmp_path.iterdir()) == []
