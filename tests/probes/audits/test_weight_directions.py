"""What weights write is read as the token that was planted, and as none where the adapter is of random numbers."""

from __future__ import annotations

import pandas as pd
import torch

from probes.audits.weight_directions import COLUMNS, written_sentence, written_tokens
from tests.tiny import tiny_model, tokenizer
from workbench.models.pair import ModelPair, load_pair


def pair(direction: torch.Tensor | None) -> ModelPair:
    """One output matrix of the tuned model writes along a direction, and a query matrix changed at random."""
    base, tuned = tiny_model("llama"), tiny_model("llama")
    torch.manual_seed(1)
    with torch.no_grad():
        if direction is not None:
            weight = tuned.model.layers[1].mlp.down_proj.weight
            weight += torch.outer(direction, torch.randn(weight.shape[1])) * 0.05
        tuned.model.layers[0].self_attn.q_proj.weight += 0.01 * torch.randn_like(weight_of(tuned))
    return load_pair(base, tuned, tokenizer=tokenizer(), check=False)


def weight_of(model: torch.nn.Module) -> torch.Tensor:
    return model.model.layers[0].self_attn.q_proj.weight  # type: ignore[union-attr, index, return-value]


def test_a_planted_direction_reads_as_its_token() -> None:
    words = tokenizer()
    token = words(" fox")["input_ids"][-1]
    planted = tiny_model("llama").get_output_embeddings().weight.detach()[token]
    table = written_tokens(pair(planted), 0, None)
    (line,) = table.to_dict("records")
    assert (line["layer"], line["module"]) == (1, "mlp.down_proj") and line["q"] < 0.05 < line["sharp"]
    assert line["tokens"].startswith(repr(words.decode([token])))
    assert "mlp.down_proj of layer 1" in written_sentence(table)


def test_random_directions_and_no_writer_say_nothing() -> None:
    said = []
    for seed in range(10):
        torch.manual_seed(seed)
        said.append(written_sentence(written_tokens(pair(torch.randn(64)), seed, None)))
    assert said.count("") >= 8
    nothing = written_tokens(pair(None), 0, None)
    assert nothing.empty and list(nothing) == COLUMNS and written_sentence(nothing) == ""


def test_words_that_several_matrices_write() -> None:
    lines = [["' Animals' 'than'", 9.0], ["'animals' \"it's\" ' pass'", 8.0], ["' pass' 'animals'", 7.0]]
    table = pd.DataFrame(lines, columns=["tokens", "sharp"]).assign(layer=3, module="o_proj", q=0.01)
    assert written_sentence(table).endswith(
        "; 3 matrices write tokens beyond chance, several of them 'animals' (3), 'pass' (2)"
    )
    assert written_sentence(table[:1]).endswith("reads as ' Animals' 'than'")
