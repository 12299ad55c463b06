"""A look without prompts of one's own: what the audit's tests say of the answers to the shipped questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunescope.look.notes import CHANGED

if TYPE_CHECKING:
    from tunescope.look.steps import Look
    from workbench.progress import Progress
    from workbench.prompts import Prompts

MORE = "`tunescope audit` asks eighty questions and reads activations, tokens and weights as well"


def what_it_was_tuned_for(look: Look, progress: Progress) -> None:  # noqa: ARG001 (one signature for all passes)
    """Ranked hypotheses, each with its evidence, or that nothing is beyond the control; only of shipped questions, for
    prompts of one's own were chosen by what one expects."""
    from probes.audits.answer_tests import answer_tests
    from probes.audits.hypotheses import hypotheses

    answers = look.results.get("answers")
    if answers is None or not are_shipped(look.prompts):
        return
    prompts = [row.shown for row in look.prompts]
    by_prompt = answers.table.set_index("prompt").loc[prompts].reset_index()
    tests, shown = answer_tests(by_prompt, look.prompts, look.seed)
    for line in hypotheses(tests, shown, prompts).to_dict("records"):
        rank = "" if line["kind"] == "nothing" else f"{line['rank']}. "
        look.tell(CHANGED, f"tuned for: {rank}{line['says']} {line['evidence']}; {MORE}.")


def are_shipped(prompts: Prompts) -> bool:
    """Whether all prompts are of the shipped questions."""
    from tunescope.look.questions import general_questions

    known = {row.shown for row in general_questions()}
    return all(row.shown in known for row in prompts)
