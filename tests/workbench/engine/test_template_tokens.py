"""Content is what a person wrote: neither the first token, nor special ones, nor the chat template's words."""

from __future__ import annotations

import torch

from interventions import mean_norm
from tests.tiny import tiny_model, tokenizer
from workbench.engine.template_tokens import TemplateTokens
from workbench.models.adapted import AdaptedModel
from workbench.recording.record_pair import record

TEMPLATE = (
    "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)
CHAT = [{"role": "user", "content": "the user jumps"}]
LONGER = [*CHAT, {"role": "assistant", "content": "over\n"}, {"role": "user", "content": "a dog"}]


def chatty() -> AdaptedModel:
    tok = tokenizer()
    tok.chat_template = TEMPLATE
    return AdaptedModel(tiny_model("llama"), tok)


def test_content_of_a_chat_is_what_its_turns_say() -> None:
    model = chatty()
    rec = record(model, [CHAT, LONGER], ["resid_post"], layers=[0], positions="content")
    said = rec.index.groupby("prompt")["token"].apply("".join).tolist()
    assert said == ["the user jumps", "the user jumpsover\na dog"]
    everything = record(model, [CHAT, LONGER], ["resid_post"], layers=[0], positions="all").index
    assert "".join(everything[everything["content"]]["token"]) == "".join(said)


def test_content_without_a_template_leaves_out_the_first_and_the_special_tokens() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    special = TemplateTokens(model.tokenizer).special
    ids = [5, 6, special[0], 7]
    assert TemplateTokens(model.tokenizer).content(ids) == [False, True, False, True]
    rec = record(model, [ids], ["resid_post"], layers=[0], positions="content")
    assert rec.index["position"].tolist() == [1, 3]


def test_content_is_the_same_in_a_padded_batch_and_for_generated_tokens() -> None:
    model = chatty()
    alone = [record(model, [one], ["resid_post"], layers=[1], positions="content") for one in (CHAT, LONGER)]
    both = record(model, [CHAT, LONGER], ["resid_post"], layers=[1], positions="content", batch_size=2)
    rows = torch.cat([one["model"]["resid_post", 1] for one in alone])
    assert torch.allclose(both["model"]["resid_post", 1], rows, atol=1e-5)


def test_a_sink_does_not_enter_the_mean_norm() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    with torch.no_grad():
        model.inner.get_input_embeddings().weight[5] *= 1000
    quiet, loud = mean_norm(model, [[6, 7, 8]], 0, "resid_pre"), mean_norm(model, [[5, 7, 8]], 0, "resid_pre")
    assert quiet == loud and mean_norm(model, [[5, 7, 8]], 0, "resid_pre", positions="all") > 10 * loud
