"""Whether a model can read the token ids that it is given: each needs a row of its embedding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.errors import UserError
from workbench.prompts.answers import continuation_ids
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Tensor

if TYPE_CHECKING:
    from workbench.models.adapted import AdaptedModel

_MOST_NAMED = 3


def embedding_rows(hf: Any) -> int:
    """How many token ids the model can read."""
    return int(hf.get_input_embeddings().weight.shape[0])


def check_ids(ids: Iterable[Sequence[int]], models: Mapping[str, AdaptedModel], *, what: str = "prompts") -> None:
    """Raise UserError, naming the tokens, when one of ``models`` (by role) has no embedding row for an id in ``ids``.

    Args:
        ids: token ids of prompts, one list each.
        models: every model that will read them.
        what: what the ids are of, as an error calls it.
    """
    rows = {role: model.n_token_ids for role, model in models.items()}
    smallest = min(rows.values())
    beyond = sorted({token for row in ids if max(row, default=0) >= smallest for token in row if token >= smallest})
    if beyond:
        role = min(rows, key=rows.__getitem__)
        said = _sentence(beyond, rows[role], role, models[role].tokenizer, alone=len(models) == 1)
        raise UserError(said.replace("prompts", what))


def check_prompts(prompts: Any, models: Mapping[str, AdaptedModel]) -> None:
    """:func:`check_ids` of prompts, and of their answers, for all ``models``, through the tokenizer that they share.

    The tokenizer is asked only where it knows more ids than one of the models has rows.
    """
    smallest = min(model.n_token_ids for model in models.values())
    tokenizer = next(
        (model.tokenizer for model in reversed(list(models.values())) if model.tokenizer is not None), None
    )
    if tokenizer is not None and len(tokenizer) > smallest:
        check_ids(encode(prompts, tokenizer), models)
    check_answers(prompts, tokenizer, models)


def check_answers(prompts: Any, tokenizer: Any, models: Mapping[str, AdaptedModel]) -> None:
    """:func:`check_ids` of the answers and distractors that prompts bring."""
    rows = Prompts.of(prompts)
    columns = [row.columns.get(name) for row in rows for name in ("answer_ids", "distractor_ids")]
    answers = [ids for ids in columns if isinstance(ids, list) and all(isinstance(token, int) for token in ids)]
    if tokenizer is not None and len(tokenizer) > min(model.n_token_ids for model in models.values()):
        texts = [(row, text) for row in rows for text in (row.answer, row.distractor) if text]
        answers += [continuation_ids(row, tokenizer, text) for row, text in texts]
    check_ids(answers, models, what="answers")


def check_tensor(ids: Tensor, model: AdaptedModel) -> None:
    """:func:`check_ids` of a batch, padding included. A batch that already lies on an accelerator is left unread."""
    if ids.device.type != "cpu" or not ids.numel():
        return
    if int(ids.min()) < 0:
        raise UserError(f"There is a negative token id ({int(ids.min())}): give ids that the tokenizer made.")
    if int(ids.max()) >= model.n_token_ids:
        check_ids(ids.tolist(), {model.role: model})


def readable_padding(tokenizer: Any, rows: int) -> str | None:
    """Give ``tokenizer`` a padding token below ``rows``, if its own is beyond; returns a sentence when it was changed.

    Padding is masked, so any token serves.
    """
    own = tokenizer.pad_token_id
    if own is None or own < rows:
        return None
    pad = tokenizer.pad_token
    special = (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, 0)
    stand_in = next(token for token in special if token is not None and token < rows)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(stand_in)
    return (
        f"The padding token {pad!r} (id {own}) has no embedding row in both models; {tokenizer.pad_token!r} stands in, "
        "masked as padding."
    )


def unreadable_tokens(tokenizer: Any, rows: Mapping[str, int]) -> tuple[str, ...]:
    """One sentence for each model (role -> rows) that lacks rows for tokens that ``tokenizer`` may make."""
    vocabulary = tokenizer.get_vocab()
    missing = {role: sorted((i, token) for token, i in vocabulary.items() if i >= size) for role, size in rows.items()}
    missing = {role: tokens for role, tokens in missing.items() if tokens}
    if len({len(tokens) for tokens in missing.values()}) == 1 and len(missing) == len(rows) > 1:
        missing = {"both": next(iter(missing.values()))}
    return tuple(
        f"The tokenizer makes {len(tokens)} tokens that {_whose(role)} no embedding row for "
        f"({_listed([token for _, token in tokens])}): prompts that hold one are refused."
        for role, tokens in missing.items()
    )


def _sentence(beyond: list[int], rows: int, role: str, tokenizer: Any, *, alone: bool) -> str:
    names = [str(index) for index in beyond]
    if tokenizer is not None:
        names = [_named(index, tokenizer.convert_ids_to_tokens(index)) for index in beyond]
    advice = "" if alone else ", or look at the other model alone"
    return (
        f"The prompts hold {_listed(names, quoted=False)}, and {_whose(role)} embedding rows for the ids 0 to "
        f"{rows - 1} only: give prompts without them (plain text where the chat template adds them){advice}."
    )


def _named(index: int, token: str | None) -> str:
    return f"id {index}" if token is None else f"{token!r} (id {index})"


def _listed(names: Sequence[str], *, quoted: bool = True) -> str:
    shown = [repr(name) if quoted else name for name in names[:_MOST_NAMED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _whose(role: str) -> str:
    return {"tuned": "the tuned model has", "both": "both models have"}.get(role, f"the {role} has")
