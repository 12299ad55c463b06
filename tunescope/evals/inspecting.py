"""Inspect (``inspect_ai``): any of its tasks on base, tuned and tuned + recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunescope.evals.comparison import EvalComparison, Scores, compared, subjects_of
from tunescope.evals.harness import cut
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.subject import AppliedRecipe, Subject, Work
from workbench.errors import MissingExtra, UserError
from workbench.models.adapted import NEW_TOKENS
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts


def run_inspect(
    pair: ModelPair,
    task: Any,
    recipe: AppliedRecipe | Mapping[str, AppliedRecipe] | None = None,
    *,
    log_dir: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> EvalComparison:
    """Evaluate base, tuned and tuned + recipe on a task of Inspect, paired by sample.

    Args:
        pair: Base and tuned.
        task: A task or its name, as ``inspect_ai.eval`` takes it.
        recipe: One recipe or named ones, on the tuned model.
        log_dir: Where Inspect writes its logs; default: its own.
        seed: Of the intervals, and of sampled answers where the task samples.
        options: Go to ``inspect_ai.eval``, such as ``limit`` or ``max_tokens``.

    Returns:
        An :class:`EvalComparison`: scores and changes against the base with 95 % intervals over samples.

    Raises:
        MissingExtra: Inspect is not installed.
        UserError: The evaluation failed; Inspect's own reason is told.

    Example:
        ``run_inspect(pair, "inspect_evals/gsm8k", recipe, limit=50).table``
    """
    try:
        import inspect_ai
    except ImportError as error:
        raise MissingExtra("Inspect", "evals") from error
    subjects, scores = subjects_of(pair, recipe), {}
    for subject in subjects:
        [log] = inspect_ai.eval(
            task, model=inspect_model(subject, seed), log_dir=None if log_dir is None else str(log_dir),
            display="none", **options,
        )  # fmt: skip
        if log.status != "success" or log.samples is None:
            raise UserError(f"Inspect could not evaluate {subject.name}: {log.error or log.status}.")
        scores[subject.name] = _scores(log)
    return compared(scores, f"inspect_ai {version('inspect_ai')}", seed)


def inspect_model(subject: Subject, seed: int = 0) -> Any:
    """A model of Inspect that is a model of ours, under its recipe; greedy unless the task sets a temperature.

    Args:
        subject: The model and the recipe it is under.
        seed: Of sampled answers: all subjects share their noise.

    Returns:
        What ``inspect_ai.eval(model=...)`` takes.
    """
    from inspect_ai.model import ModelAPI, ModelOutput, get_model, modelapi

    @modelapi(name="tunescope")
    class TunescopeAPI(ModelAPI):  # type: ignore[misc]
        def max_connections(self) -> int:
            return 1  # one model runs one batch at a time

        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:  # noqa: ARG002
            if tools:
                raise UserError("This task gives the model tools, which Tunescope's models cannot call.")
            text, ended = _answer(subject, input, config, seed)
            return ModelOutput.from_content(self.model_name, text, stop_reason="stop" if ended else "max_tokens")

    return get_model(f"tunescope/{subject.name}", memoize=False)


def _answer(subject: Subject, messages: Sequence[Any], config: Any, seed: int) -> tuple[str, bool]:
    """The text, and whether the model (or a stop sequence) ended it."""
    turns = [{"role": message.role, "content": message.text} for message in messages]
    if subject.model.has_chat_template:
        row: dict[str, Any] = {"messages": turns}
    else:
        row = {"prompt": "\n\n".join(turn["content"] for turn in turns)}
    sampled = bool(config.temperature)
    decoding = Decoding(
        config.max_tokens or NEW_TOKENS, samples=int(sampled), temperature=config.temperature or 1.0,
        top_p=config.top_p or 1.0, top_k=config.top_k or 0, seed=seed,
    )  # fmt: skip
    [replies] = generate_replies(subject, Prompts.of([row]), decoding, Work(1))
    text = cut(replies[-1].text, config.stop_seqs or [])
    return text, replies[-1].ended or text != replies[-1].text


def _scores(log: Any) -> Scores:
    from inspect_ai.scorer import value_to_float

    number = value_to_float()
    return {
        (log.eval.task, scorer, f"{sample.id} {sample.epoch}"): float(number(score.value))
        for sample in log.samples
        for scorer, score in (sample.scores or {}).items()
    }
