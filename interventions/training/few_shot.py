"""LM-BFF (Gao, Fisch, Chen 2021): prompt-based fine-tuning on a few rows of each class, with demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from interventions.recipe import as_adapted
from interventions.training.examples import IGNORED, Collator, examples_of
from interventions.training.objectives import Lesson
from interventions.training.stages import taught
from interventions.training.trainer import Schedule
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress, Silent
from workbench.prompts.answers import continuation_ids
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import batches, encode, pad_left
from workbench.prompts.row import Prompt
from workbench.stats.intervals import Interval
from workbench.stats.shares import share_interval
from workbench.typing import Float, Int, Tensor

TEXT = "{text}"
NEAREST = 0.5
"""Share of a class's rows, those most like the query, of which a demonstration is drawn."""


@dataclass(frozen=True)
class FewShotTuning:
    """A model tuned by prompts on a few rows of each class, and what it can do."""

    model: Any
    """The model that was given, trained in place."""
    words: Mapping[str, str]
    """Class -> its label word."""
    train: Prompts
    """The few rows as they were read: the templates filled in, label words as answers."""
    test: Prompts
    """All other rows alike: prompts for a graft, a behaviour diff, any probe."""
    accuracy_before: Interval
    """Share of test rows right before training, among the label words."""
    accuracy_after: Interval
    history: tuple[dict[str, float], ...]


_SCHEDULE = Schedule(epochs=10, batch_size=8, learning_rate=1e-5)
"""How long and how fast, where nothing else is said."""


@method(
    "few-shot-tuning",
    group="training",
    question="Which model does prompt-based tuning on sixteen rows of each class make?",
    kind="training",
    papers=("Making Pre-trained Language Models Better Few-shot Learners",),
    cost="a forward and backward pass per batch, and two passes over all rows",
    expands={"schedule": _SCHEDULE},
    example="--shots 4 --epochs 1",
)
def few_shot_finetune(
    model: Any,
    prompts: Any,
    *,
    template: str = TEXT + " It is",
    words: Mapping[str, str] | None = None,
    shots: int = 16,
    demonstrations: bool = True,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> FewShotTuning:
    """Train every weight, in place, to write each row's label word behind the template, on ``shots`` rows per class.

    The loss is the cross-entropy among the label words alone, as in the paper. Behind demonstrations a row is read
    after one answered row of every class, drawn among the half of that class's training rows whose states are most like
    its own. The result makes the checkpoints of skill localization: ``probes.graft(pair, tuned.test)``.

    Args:
        model: A bare model; its weights are changed.
        prompts: Texts with a label each.
        template: How a text is read, with {text} where it goes; the label word follows.
        words: Class -> label word, one token each; by default found by :func:`label_words` on the training rows.
        shots: Rows of each class to train on, drawn by the schedule's seed.
        demonstrations: One answered row of each class stands before every row.
        schedule: How long and how fast.

    Returns:
        The tuned model, its rows, and its accuracy before and after on the rows that were left.

    Raises:
        UserError: A template without {text}, a row without a label, fewer than two classes, or too few rows of one.
    """
    if TEXT not in template:
        raise UserError(f"The template {template!r} has no place for the text: write {TEXT} where it goes.")
    adapted, schedule = as_adapted(model), schedule or _SCHEDULE
    rows = Prompts.of(prompts)
    few, rest = parted(rows, shots, schedule.seed)
    word_of = dict(words) if words is not None else label_words(adapted, few, template)
    for label in sorted({str(row.label) for row in rows}):
        if label not in word_of:
            raise UserError(f"There is no label word for the class {label!r}: words must name one for each class.")
    choices = _choices(adapted, word_of)
    train, test = filled(few, template, word_of), filled(rest, template, word_of)
    if demonstrations:
        pool, states = train, _states(adapted, train)
        train = demonstrated(train, pool, (states, states), schedule.seed)
        test = demonstrated(test, pool, (_states(adapted, test), states), schedule.seed)
    before = accuracy(adapted, test, choices)
    lesson = Lesson(
        examples_of(train, adapted.tokenizer, end=False), Collator(pad_id(adapted.tokenizer)),
        partial(label_word_loss, choices=choices),
    )  # fmt: skip
    moving = [parameter for parameter in adapted.hf.parameters() if parameter.requires_grad]
    history = taught(adapted, moving, lesson, schedule, "few-shot tuning", progress or Silent())
    adapted.hf.eval()
    return FewShotTuning(model, word_of, train, test, before, accuracy(adapted, test, choices), history)


def parted(rows: Prompts, shots: int, seed: int) -> tuple[Prompts, Prompts]:
    """``shots`` rows of each class, and all others; a group is never in both."""
    labels = [row.label for row in rows]
    if missing := [number for number, label in enumerate(labels) if label is None]:
        raise UserError(f"Prompt {missing[0]} has no label: every row needs its class.")
    names = np.array([str(label) for label in labels])
    random, inside = np.random.default_rng(seed), np.zeros(len(rows), dtype=bool)
    if len(np.unique(names)) < 2:
        raise UserError(f"All rows are of the class {names[0]!r}: give rows of two or more.")
    for name in np.unique(names):
        own = np.flatnonzero(names == name)
        if shots < 1 or len(own) <= shots:
            raise UserError(
                f"The class {name!r} has {len(own)} rows, and {shots} are to train on with some left to test: give "
                "more rows, or fewer shots."
            )
        inside[random.choice(own, shots, replace=False)] = True
    left = ~inside & ~np.isin(rows.clusters, np.unique(rows.clusters[inside]))
    if not left.any():
        raise UserError("No group of rows is left to test on: give more groups, or fewer shots.")
    return rows[inside], rows[left]


def filled(rows: Prompts, template: str, words: Mapping[str, str]) -> Prompts:
    """Rows as they are read: the template around each text, its label word as answer, another's as distractor."""
    made = []
    for row in rows:
        own = words[str(row.label)]
        other = next((word for label, word in words.items() if label != str(row.label)), None)
        made.append(Prompt(
            prompt=template.replace(TEXT, row.shown), chat=False, answer=own, distractor=other, label=row.label,
            group=row.group, columns=row.columns,
        ))  # fmt: skip
    return Prompts(made)


def demonstrated(
    rows: Prompts, pool: Prompts, states: tuple[Float[Tensor, "row d"], Float[Tensor, "other d"]], seed: int
) -> Prompts:
    """Every row behind one answered row of each class, drawn among that class's rows most like it; never itself."""
    random = np.random.default_rng(seed)
    labels = np.array([str(row.label) for row in pool])
    alike = torch.nn.functional.normalize(states[0], dim=-1) @ torch.nn.functional.normalize(states[1], dim=-1).T
    made = []
    for number, row in enumerate(rows):
        shown = []
        for name in random.permutation(np.unique(labels)):
            own = [int(place) for place in np.flatnonzero(labels == name) if pool[int(place)].prompt != row.prompt]
            if not own:
                continue
            ranked = sorted(own, key=partial(_unlike, alike[number]))
            place = int(random.choice(ranked[: max(1, round(NEAREST * len(ranked)))]))
            shown.append(f"{pool[place].prompt}{pool[place].answer}")
        made.append(Prompt(
            prompt="\n".join([*shown, str(row.prompt)]), chat=False, answer=row.answer, distractor=row.distractor,
            label=row.label, group=row.group, columns=row.columns,
        ))  # fmt: skip
    return Prompts(made)


def label_words(model: Any, rows: Prompts, template: str, *, candidates: int = 20) -> dict[str, str]:
    """A label word for each class: of the words the untouched model finds likeliest there, those that part it best.

    For every class the ``candidates`` words of one token of highest mean log-probability behind its rows are taken, as
    in the paper; of them the one that is most above the other classes' mean is chosen, so no two classes share one.

    Raises:
        UserError: The tokenizer has fewer words of one token than there are classes.
    """
    adapted = as_adapted(model)
    filled_rows = filled(rows, template, {str(row.label): "" for row in rows})
    chances = _next_words(adapted, encode(filled_rows, adapted.tokenizer, adapted.max_positions)).log_softmax(-1)
    labels = np.array([str(row.label) for row in rows])
    names = sorted(set(labels.tolist()))
    means = torch.stack([chances[torch.from_numpy(labels == name)].mean(0) for name in names])
    special = [token for token in adapted.tokenizer.all_special_ids if token < means.shape[1]]
    means[:, special] = -torch.inf
    word_of: dict[str, str] = {}
    for place, name in enumerate(names):
        others = torch.cat([means[:place], means[place + 1 :]]).mean(0)
        likely = islice(_words(adapted, means[place]), candidates + len(word_of))
        words = {word: token for token, word in likely if word not in word_of.values()}
        if not words:
            raise UserError(f"The tokenizer has no word of one token for the class {name!r}: give words of your own.")
        word_of[name] = _most_above(words, means[place] - others)
    return word_of


def _words(model: AdaptedModel, chances: Float[Tensor, " vocab"]) -> Iterator[tuple[int, str]]:
    """Every token that is a word behind a prompt, the likeliest first."""
    for token in chances.argsort(descending=True).tolist():
        word = f" {model.tokenizer.decode([token]).strip()}"
        if word.strip() and len(_word_ids(model, word)) == 1:
            yield token, word


def _most_above(words: Mapping[str, int], margins: Float[Tensor, " vocab"]) -> str:
    return max(words, key=lambda word: float(margins[words[word]]))


def _word_ids(model: AdaptedModel, word: str) -> list[int]:
    """The tokens of a word behind a prompt."""
    return continuation_ids(Prompt(prompt="a", chat=False), model.tokenizer, word)


def _unlike(values: Float[Tensor, " place"], place: int) -> float:
    """What sorts places by their values, the largest first."""
    return -float(values[place])


def _choices(model: AdaptedModel, words: Mapping[str, str]) -> Int[Tensor, " class"]:
    tokens = {}
    for label, word in words.items():
        ids = _word_ids(model, word)
        if len(ids) != 1:
            raise UserError(f"The label word {word!r} of {label!r} is {len(ids)} tokens: give words of one token.")
        tokens[label] = ids[0]
    if len(set(tokens.values())) < len(tokens):
        raise UserError(f"Two classes have the same label word ({', '.join(words.values())}): give one to each.")
    return torch.tensor(list(tokens.values()))


def label_word_loss(
    logits: Float[Tensor, "row pos vocab"], labels: Int[Tensor, "row pos"], choices: Int[Tensor, " class"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the right label word among all label words, in nats."""
    row, place = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    among = logits[row, place].float()[:, choices.to(logits.device)]
    wanted = (labels[:, 1:][row, place][:, None] == choices.to(labels.device)).float().argmax(-1)
    return torch.nn.functional.cross_entropy(among, wanted)


def accuracy(model: AdaptedModel, rows: Prompts, choices: Int[Tensor, " class"]) -> Interval:
    """The share of rows whose label word is the likeliest of all label words, with its interval."""
    logits = _next_words(model, encode(rows, model.tokenizer, model.max_positions))[:, choices]
    wanted = [continuation_ids(row, model.tokenizer)[0] for row in rows]
    right = choices[logits.argmax(-1)] == torch.tensor(wanted)
    return share_interval(right.numpy(), clusters=rows.clusters)


@torch.no_grad()
def _next_words(model: AdaptedModel, ids: Sequence[Sequence[int]]) -> Float[Tensor, "row vocab"]:
    states: dict[int, Tensor] = {}
    for rows in batches([len(row) for row in ids], 32):
        with model.active():
            logits = model.forward(pad_left([ids[row] for row in rows], pad_id(model.tokenizer)), logits="last")
        assert logits is not None
        states |= dict(zip(rows, logits[:, -1].float().cpu(), strict=True))
    return torch.stack([states[number] for number in range(len(ids))])


def _states(model: AdaptedModel, rows: Prompts) -> Float[Tensor, "row d_model"]:
    """The residual stream after the last layer at each row's last token: how like two rows are."""
    from interventions.training.examples import Example
    from interventions.training.reward_head import last_states

    examples = [Example(list(ids), []) for ids in encode(rows, model.tokenizer, model.max_positions)]
    return last_states(model, examples, model.n_layers - 1, 32)
