"""Side paths, prompt spaces and instruction prompts: they learn what is planted, and off is the base."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import interventions as iv
import probes
import workbench as wb
from tests.tiny import tiny_model, tokenizer
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.attachments.attachment import Switch
from workbench.models.attachments.prompt_spaces import PromptSpaces
from workbench.models.attachments.side_path import SidePath
from workbench.models.attachments.stored import load_attachment, save_attachment
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts
from workbench.prompts.answers import continuation_ids
from workbench.prompts.encode import encode

WORDS = "quick lazy brown jumps over red big old sad new hot cold".split()
PARTED = Prompts.of([
    {"prompt": f"{('the', 'a')[i % 2]} {word} x", "answer": (" fox", " dog")[i % 2],
     "distractor": (" dog", " fox")[i % 2], "group": str(i)}
    for i, word in enumerate(WORDS)
])  # fmt: skip
"""The first word says which answer is right: the instruction has to be read."""
ALIKE = Prompts.of([{"prompt": f"the {word} x", "answer": " fox", "distractor": " dog"} for word in WORDS])
SCHEDULE = iv.Schedule(epochs=12, batch_size=4, learning_rate=2e-2)
KINDS = ("side path", "prompt spaces", "instruction prompts")


def model(seed: int = 0) -> AdaptedModel:
    return AdaptedModel(tiny_model("llama", seed), tokenizer(), role="model")


def rows(kind: str) -> Prompts:
    """One prompt for all inputs learns one answer; what reads the instruction learns two."""
    return ALIKE if kind == "prompt spaces" else PARTED


@cache
def trained(kind: str) -> Any:
    made = {
        "side path": iv.train_side_path,
        "prompt spaces": iv.train_prompt_spaces,
        "instruction prompts": iv.train_instruction_prompts,
    }[kind](model(), rows(kind), schedule=SCHEDULE)
    return made


def pair_with(kind: str, attachment: Any = None) -> ModelPair:
    made = trained(kind) if attachment is None else attachment
    return load_pair(tiny_model("llama"), made, tokenizer=tokenizer(), check=False)


def share_right(side: AdaptedModel, prompts: Prompts) -> float:
    """The share of rows whose answer is likelier than the distractor, by the margin of its first token."""
    right = 0
    for row, ids in zip(prompts, encode(prompts, side.tokenizer), strict=True):
        logits = side.forward(torch.tensor([ids]), logits="last")
        assert logits is not None
        answer, other = (continuation_ids(row, side.tokenizer, text)[0] for text in (row.answer, row.distractor))
        right += bool(logits[0, -1].argmax() == answer) and answer != other
    return right / len(prompts)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_the_planted_answers_and_neither_the_base_nor_a_random_one_has_them(kind: str) -> None:
    pair = pair_with(kind)
    assert share_right(pair.tuned, rows(kind)) >= 0.9
    assert share_right(pair.base, rows(kind)) <= 0.1
    random = trained(kind).attachment.random_like(1)
    assert random.norm == pytest.approx(trained(kind).attachment.norm, rel=1e-4)
    assert share_right(pair_with(kind, random).tuned, rows(kind)) <= 0.1
    losses = [step["loss"] for step in trained(kind).history]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_off_is_the_plain_model_bit_by_bit_and_leaves_no_hook(kind: str) -> None:
    hf, pair = tiny_model("llama"), pair_with(kind)
    batch = pair.base.encode(rows(kind))
    plain = hf(batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids).logits
    real = batch.attention_mask.bool()
    off, on = pair.base.forward(batch), pair.tuned.forward(batch)
    assert off is not None and on is not None
    assert torch.equal(off[real], plain[real]) and (on - off)[real].abs().max() > 1e-2
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pair.base.inner.modules())
    with pytest.raises(ZeroDivisionError), pair.tuned.active():
        raise ZeroDivisionError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pair.base.inner.modules())
    assert pair.one_copy and pair.base.identity != pair.tuned.identity


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_brings_back_the_same_logits_and_identity(kind: str, tmp_path: Path) -> None:
    folder = trained(kind).save(tmp_path / "made")
    assert {path.name for path in folder.iterdir()} == {"attachment.json", "attachment.safetensors"}
    stored, fresh = pair_with(kind, str(folder)), pair_with(kind)
    assert stored.tuned.identity.adapter == fresh.tuned.identity.adapter
    one, other = (side.tuned.forward(side.tuned.encode(rows(kind))) for side in (stored, fresh))
    assert torch.equal(one, other)
    with pytest.raises(UserError, match="holds an attachment already"):
        trained(kind).save(folder)
    (folder / "attachment.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"no whole safetensors file"):
        load_attachment(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_generation_is_that_without_a_cache_and_padding_changes_nothing(kind: str) -> None:
    pair = pair_with(kind)
    texts = Prompts.of(["the quick x", "a new and lazy brown x"])
    cached, plain = (pair.tuned.generate(texts, max_new_tokens=5, use_cache=one) for one in (True, False))
    assert cached == plain
    together = pair.tuned.forward(pair.tuned.encode(texts), logits="last")
    for number in range(2):
        alone = pair.tuned.forward(pair.tuned.encode(texts[[number]]), logits="last")
        torch.testing.assert_close(together[number], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_recordings_diffs_and_recipes_read_it_as_a_tuned_model(kind: str) -> None:
    pair, prompts = pair_with(kind), rows(kind)
    recording = wb.record(pair, prompts[:4], sites="resid_post", positions="last")
    change = recording["tuned"]["resid_post", 2] - recording["base"]["resid_post", 2]
    assert float(torch.as_tensor(change).abs().max()) > 1e-2
    offset = iv.Recipe([iv.Offset(1, torch.ones(64))])
    before = pair.tuned.forward(pair.tuned.encode(prompts), logits="last")
    with offset.applied(pair.tuned):
        moved = pair.tuned.forward(pair.tuned.encode(prompts), logits="last")
    assert not torch.equal(before, moved)
    assert torch.equal(pair.tuned.forward(pair.tuned.encode(prompts), logits="last"), before)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "qwen2moe", "neox"])
def test_an_untrained_side_path_is_the_base_in_every_family(family: str) -> None:
    hf = tiny_model(family)
    pair = load_pair(hf, SidePath(64, range(3)), tokenizer=tokenizer(), check=False)
    batch = pair.base.encode(["the quick x"])
    off, on = pair.base.forward(batch), pair.tuned.forward(batch)
    assert torch.equal(off, on)


def test_shares_of_a_planted_path_add_up_and_a_cut_link_takes_them_away() -> None:
    """Module 0 reads, module 2 alone writes: all of it comes by the two links."""
    torch.manual_seed(0)
    path = SidePath(64, range(3), width=4)
    with torch.no_grad():
        path.down[1:] = 0
        path.up[2] = torch.randn(4, 64)
    pair = load_pair(tiny_model("llama"), path.requires_grad_(False), tokenizer=tokenizer(), check=False)
    table = probes.side_shares(pair, PARTED).set_index(["source", "target"])
    assert table["score"][0, 2] == pytest.approx(1) and table["score"][1, 2] == table["score"][2, 2] == 0
    batch = pair.tuned.encode(PARTED)
    on, off = pair.tuned.forward(batch), pair.base.forward(batch)
    assert not torch.allclose(on, off)
    with path.without("L1>L2"):
        assert torch.equal(pair.tuned.forward(batch), off)
    assert torch.equal(pair.tuned.forward(batch), on)
    effects = probes.part_effects(pair, PARTED).set_index("part")["score"]
    assert effects["L1"] == effects["L2"] == 0 and effects["L0"] == pytest.approx(effects["L1>L2"]) != 0
    with pytest.raises(UserError, match="part"), path.without("L0>L2"):
        pass


def test_scattered_modules_have_no_share_in_one_another() -> None:
    path = SidePath(64, range(3), connected=False)
    path.up.data.copy_(torch.ones(3, 8, 64))
    pair = load_pair(tiny_model("llama"), path.requires_grad_(False), tokenizer=tokenizer(), check=False)
    table = probes.side_shares(pair, PARTED)
    apart = table["source"] != table["target"]
    assert (table["score"][apart] == 0).all() and table["score"][~apart].to_numpy() == pytest.approx(1)


def test_untrained_parts_do_nothing() -> None:
    """The null: a path that was not trained writes nothing, and no part of it matters, nor a random one's absence."""
    pair = load_pair(tiny_model("llama"), SidePath(64, range(3)), tokenizer=tokenizer(), check=False)
    effects = probes.part_effects(pair, PARTED)
    assert (effects["score"] == 0).all() and (effects["q"] == 1).all()
    with pytest.raises(UserError, match="no instruction prompts"):
        probes.realised_prompts(pair, PARTED)
    with pytest.raises(UserError, match="no attachment"):
        probes.part_effects(load_pair(tiny_model("llama"), tiny_model("llama", 1), tokenizer=tokenizer()), PARTED)


def test_instruction_prompts_differ_between_inputs_and_only_by_the_instruction() -> None:
    pair = pair_with("instruction prompts")
    attachment: Any = pair.attachment
    batch = pair.tuned.encode(PARTED[:2])
    pair.tuned.forward(batch, logits=None)
    realised = torch.stack([attachment.realised[layer] for layer in range(3)])
    assert realised.shape == (3, 2, 4, 64)
    assert float((realised[:, 0] - realised[:, 1]).norm()) > 1e-2
    made, table = probes.realised_prompts(pair, PARTED)
    torch.testing.assert_close(made[:2].transpose(0, 1), realised, atol=1e-5, rtol=1e-4)
    assert (table["low"] > 0).all() and (table["control"] > 0).all()
    longer = torch.cat([batch.input_ids, torch.tensor([[7, 8], [9, 3]])], 1)
    pair.tuned.forward(longer, logits=None)
    torch.testing.assert_close(torch.stack([attachment.realised[layer] for layer in range(3)]), realised)
    curves = attachment.activations()
    start = torch.nn.functional.gelu(torch.tensor(curves["x"].to_numpy()))
    assert float((start - torch.tensor(curves["start"].to_numpy())).abs().max()) < 0.05


def test_gates_of_a_planted_space_stand_out_and_an_untrained_gate_is_even() -> None:
    torch.manual_seed(0)
    spaces = PromptSpaces(64, 5, tokens=2, spaces=3)
    with torch.no_grad():
        spaces.short.copy_(torch.randn(2, 64))
        spaces.gate.zero_()
        assert spaces.gates()["weight"].to_numpy() == pytest.approx(1 / 3)
        spaces.gate[:, 1] = spaces.fused().mean(0)
    weights = spaces.gates().groupby("space")["weight"].mean()
    assert weights[1] > 0.9 and spaces.gates().groupby("row")["weight"].sum().to_numpy() == pytest.approx(1)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the base that it was trained on"):
        Switch(SidePath(32, [0]), model().hub)
    folder = save_attachment(SidePath(64, [0]), tmp_path / "made")
    with pytest.raises(NotSupported, match="changes no weight"):
        wb.load_model(folder)
    (folder / "attachment.json").write_text('{"kind": "other"}')
    with pytest.raises(UserError, match="names the kind 'other'"):
        load_attachment(folder)


def test_a_pair_with_an_attachment_has_no_difference_of_weights() -> None:
    pair = load_pair(tiny_model("llama"), SidePath(64, range(3)), tokenizer=tokenizer(), check=False)
    with pytest.raises(UserError, match="changes no weight"):
        probes.weight_delta(pair)
