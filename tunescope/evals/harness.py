"""lm-evaluation-harness: any of its tasks on base, tuned and tuned + recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from tunescope.evals.comparison import EvalComparison, Scores, compared, subjects_of
from workbench.behaviour.continuations import logprobs
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.scored_answers import forced_answers
from workbench.behaviour.subject import AppliedRecipe, Subject, Work
from workbench.errors import MissingExtra, UserError
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts

NEW_TOKENS = 256
"""Of a generated answer, where the task says nothing (the harness's own default)."""


def run_lm_eval(
    pair: ModelPair,
    tasks: Sequence[str | dict[str, Any]],
    recipe: AppliedRecipe | Mapping[str, AppliedRecipe] | None = None,
    *,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    **options: Any,
) -> EvalComparison:
    """Evaluate base, tuned and tuned + recipe on tasks of lm-evaluation-harness, paired by sample.

    Answers are scored by teacher forcing as everywhere here: a recipe's positions mean what they mean in ``generate``.

    Args:
        pair: Base and tuned.
        tasks: Names of tasks, or tasks as the harness takes them.
        recipe: One recipe or named ones, on the tuned model.
        limit: Samples of each task.
        batch_size: Rows per forward pass.
        seed: Of the intervals.
        options: Go to ``lm_eval.simple_evaluate``, such as ``num_fewshot``.

    Returns:
        An :class:`EvalComparison`: scores and changes against the base with 95 % intervals over samples.

    Raises:
        MissingExtra: The harness is not installed.
        UserError: A text is longer than the model's context.

    Example:
        ``run_lm_eval(pair, ["arc_easy"], iv.Recipe.load("refusal-off.safetensors"), limit=100).table``
    """
    try:
        import lm_eval
    except ImportError as error:
        raise MissingExtra("lm-evaluation-harness", "evals") from error
    subjects = subjects_of(pair, recipe)
    scores = {}
    for subject in subjects:
        evaluated = lm_eval.simple_evaluate(
            model=harness_model(subject, batch_size), tasks=list(tasks), limit=limit, log_samples=True,
            bootstrap_iters=0, **options,
        )  # fmt: skip
        scores[subject.name] = _scores(evaluated["samples"])
    return compared(scores, f"lm-eval {version('lm-eval')}", seed)


def harness_model(subject: Subject, batch_size: int = 16) -> Any:
    """A model of lm-evaluation-harness that is a model of ours, under its recipe.

    Args:
        subject: The model and the recipe it is under.
        batch_size: Rows per forward pass.

    Returns:
        What ``lm_eval.simple_evaluate(model=...)`` takes.
    """
    from lm_eval.api.model import TemplateLM

    work, tokenizer = Work(batch_size), subject.model.tokenizer

    class TunescopeLM(TemplateLM):  # type: ignore[misc]
        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            return int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id)

        @property
        def tokenizer_name(self) -> str:
            return str(subject.model.name)

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return str(
                tokenizer.apply_chat_template(
                    chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )  # fmt: skip

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            bos = tokenizer.bos_token
            special = not (bos and string.startswith(bos)) if add_special_tokens is None else add_special_tokens
            return list(tokenizer(string, add_special_tokens=special)["input_ids"])

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            prompts, answers = [request[1] for request in requests], [request[2] for request in requests]
            forced = forced_answers(subject, prompts, answers, work)
            return [(float(own), bool(right)) for own, right in zip(forced["logprob"], forced["right"], strict=True)]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
            ids = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
            totals = logprobs(subject, [[self.prefix_token_id]] * len(ids), ids, work)
            return [float(total) for total in totals.sum_]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
            return [_text(subject, self.tok_encode(request.args[0]), dict(request.args[1])) for request in requests]

    return TunescopeLM()


def _text(subject: Subject, ids: list[int], settings: dict[str, Any]) -> str:
    """One greedy text, cut before the first of the task's stop sequences."""
    if settings.get("do_sample") and settings.get("temperature", 1) != 0:
        raise UserError("This task samples its answers, and comparisons here are greedy: set do_sample: false in it.")
    decoding = Decoding(int(settings.get("max_gen_toks", NEW_TOKENS)))
    [[reply]] = generate_replies(subject, Prompts.of([{"input_ids": ids}]), decoding, Work(1))
    stops = settings.get("until") or []
    return cut(reply.text, [stops] if isinstance(stops, str) else stops)


def cut(text: str, stops: Sequence[str]) -> str:
    """``text`` before the first stop sequence in it."""
    return text[: min([text.find(stop) for stop in stops if stop and stop in text], default=len(text))]


def _scores(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Scores:
    return {
        (task, metric, str(sample["doc_id"])): float(sample[metric])
        for task, rows in samples.items()
        for sample in rows
        for metric in sample["metrics"]
        if isinstance(sample.get(metric), int | float)
    }
