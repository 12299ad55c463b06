"""Base against itself, for every registered probe that reads two models: nothing is found, or it says that nothing
differs.

The two are the same weights from two folders that differ in everything beside them: the generation config, the chat
template, the dtype that the file is in, and the attention's implementation that the config names. The calls are those
of the provenance test, so that no probe can be forgotten; the many seeds of the false-alarm tests are beside this.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import probes
from tests.declared import declared
from tests.probes.provenance import given_of
from tests.probes.test_null_adapters_everywhere import reading_a_pair
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair

FUNCTIONS = {method.function: name for name, method in reading_a_pair().items() if name not in declared("NO_PAIR")}
"""Function -> the method that it is first registered as."""
OF_ONE_MODEL = {
    "attribute-directions": "what directions do to one model",
    "mona": "which rows look alike to the tuned model, whatever tuning changed",
    "domain-experts": "which experts of one model a class of prompts goes to",
    "elicitation": "what training on labels does to copies, whatever the pair",
    "gate": "what can be told apart in one model",
    "head-probe": "what can be read off one model",
    "head-words": "what a head writes in each model; a line for either",
    "retrain-without": "what leaving rows out of a training does, whatever the pair",
    "sample-efficiency": "what training on labels does to copies, whatever the pair",
    "subject-offset": "what an offset does to one model",
    "target-attention": "where one model looks; its change is beside it",
    "token-guidance": "what scores of tokens do to the base, beside the tuned model",
    "undoing": "what further training does to the tuned model, whatever tuning changed",
}
"""Probes whose q is not about what differs -> what it is about; others say it in their own test file."""
TEMPLATES = tuple(
    "{% for m in messages %}" + turn + "{% endfor %}" for turn in ("[{{ m.content }}]", "{{ m.content }}")
)


def folders(of: Any, place: Path) -> tuple[Path, Path]:
    """A model's weights twice, with another file of everything else; of numbers that bfloat16 holds exactly."""
    model = copy.deepcopy(of.base.hf if isinstance(of, ModelPair) else of)  # other tests read the same
    model = model.unload() if hasattr(model, "unload") else model
    words = (of.tokenizer if isinstance(of, ModelPair) else None) or tokenizer()
    for number, dtype in enumerate((torch.float32, torch.bfloat16)):
        folder = place / ("base", "tuned")[number]
        model.to(torch.bfloat16).to(dtype).save_pretrained(folder)
        words.chat_template = TEMPLATES[number]
        words.save_pretrained(folder)
    change(place / "tuned" / "generation_config.json", repetition_penalty=1.8, do_sample=True, temperature=0.6)
    change(place / "tuned" / "config.json", attn_implementation="eager")
    return place / "base", place / "tuned"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def twins(of: Any, place: Path) -> ModelPair:
    base, tuned = folders(of, Path(tempfile.mkdtemp(dir=place)))
    return load_pair(base, tuned, dtype="float32", check=False)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def test_the_two_folders_differ_in_all_that_they_should(place: Path) -> None:
    pair = twins(tiny_model("llama"), place)
    said = " ".join(pair.differences.sentences())
    for word in ("repetition_penalty", "chat templates differ"):
        assert word in said, said
    ids = torch.arange(12)[None]
    assert torch.equal(pair.base.forward(ids), pair.tuned.forward(ids))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_base_against_itself_shows_nothing(name: str, place: Path) -> None:
    if (method := FUNCTIONS[name]) in declared("OF_ONE_MODEL"):
        pytest.skip(declared("OF_ONE_MODEL")[method])
    try:
        given = given_of(name, partial(twins, place=place))  # which may need a result of the same probe
        assert given.pop("of_models"), "its call reads no pair that can be replaced"
        frame = getattr(probes, name)(**given).frame()
    except UserError as refused:
        assert str(refused).endswith(".")
        return
    if "q" in frame:
        assert not (frame["q"] <= 0.05).any(), frame[frame["q"] <= 0.05]
