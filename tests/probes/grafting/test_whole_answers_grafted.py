"""Grafting on whole answers: candidates that begin alike are told apart by their later tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import probes
from probes.grafting.language import answer_rows
from probes.grafting.tasks import outcome
from tests.probes.grafting.test_graft import ANIMALS, FAST, full_pair, task
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.prompts.answers import continuation_ids
from workbench.prompts.collection import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return full_pair(task("quick", ANIMALS))


def told_by_the_second_word(data: Prompts) -> Prompts:
    """The same task with the prompt's last word moved into both answers, which then begin alike."""
    return Prompts([
        dataclasses.replace(
            row, prompt=str(row.prompt).removesuffix(" the"), answer=f" the {row.answer}",
            distractor=f" the {row.distractor}",
        )
        for row in data
    ])  # fmt: skip


def test_candidates_score_their_summed_log_probability(pair: ModelPair) -> None:
    data = told_by_the_second_word(task("quick", ANIMALS, rows=6))
    rows = answer_rows(data, pair.tuned, whole=True)
    made = rows.task(np.arange(6), pair.tuned, 4)
    scores = torch.cat([made.classify(pair.tuned.hf, batch)[0] for batch in made.batches])
    order = [n for batch in made.batches for n in range(len(batch[2]))]
    assert len(order) == 6 and scores.shape == (6, 2)
    ids = answer_rows(data, pair.tuned, whole=True).ids
    expected = []
    for row, prompt in zip(data, ids, strict=True):
        for text in (row.answer, row.distractor):
            answer = continuation_ids(row, pair.tokenizer, text)
            logits = pair.tuned.forward(torch.tensor([[*prompt, *answer[:-1]]]))[0, len(prompt) - 1 :]
            expected.append(float(logits.double().log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()))
    assert sorted(scores.flatten().tolist()) == pytest.approx(sorted(expected), abs=1e-3)


def test_the_second_word_localizes_as_the_first_does(pair: ModelPair) -> None:
    """Both answers share their first word, so whole answers differ by what the other prompt's next word differs by."""
    data = task("quick", ANIMALS)
    moved = told_by_the_second_word(data)
    with pytest.raises(UserError, match="begin with different tokens"):
        probes.graft(pair, moved, method="movement", **FAST)
    first = probes.graft(pair, data, method="first_order", sparsity=0.05, **FAST)
    whole = probes.graft(pair, moved, method="first_order", sparsity=0.05, answer_tokens="all", **FAST)
    both = [found.models.set_index("model")["accuracy"] for found in (first, whole)]
    assert both[0].to_dict() == pytest.approx(both[1].to_dict(), abs=0.05)
    assert whole.dropped == 0 and whole.provenance.settings["answer_tokens"] == "all"
    where = [found.table.set_index("name")["effect"].sort_index() for found in (first, whole)]
    assert np.corrcoef(*where)[0, 1] > 0.99


def test_all_answers_are_candidates_where_no_row_has_a_distractor(pair: ModelPair) -> None:
    data = told_by_the_second_word(task("quick", ANIMALS, rows=8))
    alone = Prompts([dataclasses.replace(row, distractor=None) for row in data])
    rows = answer_rows(alone, pair.tuned, whole=True)
    assert rows.whole is not None and rows.whole.per_prompt == 2 and set(rows.label.tolist()) <= {0, 1}
    before = outcome(rows.task(np.arange(len(rows.ids)), pair.tuned, 4), pair.tuned.hf)
    assert before.accuracy > 0.9


def test_equal_answers_are_no_choice(pair: ModelPair) -> None:
    data = [{"prompt": "the", "answer": " fox", "distractor": " fox"}]
    with pytest.raises(UserError, match="differs from its answer"):
        answer_rows(Prompts.of(data), pair.tuned, whole=True)
