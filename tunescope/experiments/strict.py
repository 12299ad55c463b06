"""Schemas that refuse what they do not know, and say it in one sentence with the place in the YAML."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from workbench.errors import UserError

MOST = 100_000
"""The largest count (steps, tokens, cells) that an experiment may ask for."""
MOST_DRAWS = 10_000
"""The largest number of random draws."""
MOST_SEED = 2**63 - 1


class Strict(BaseModel):
    """A mapping in an experiment: frozen, with no unknown key."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    leading_keys: ClassVar[tuple[str, ...]] = ()
    """Keys that say which schema this is; they are written first, and always."""

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, entries: Any) -> Any:
        if isinstance(entries, Mapping):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in entries:
                if key not in known and key not in cls.model_fields:
                    raise refusal(unknown(f"key {str(key)!r}", str(key), known), key)
            for name, field in cls.model_fields.items():
                value = entries.get(field.alias or name, entries.get(name))
                if _truths(value) and not _takes_truth(field.annotation):
                    raise refusal("is true or false, where a number or text belongs.", field.alias or name)
        return entries

    @model_serializer(mode="wrap")
    def _tags_first(self, write: Callable[[Any], dict[str, Any]]) -> Any:
        return {**{key: getattr(self, key) for key in self.leading_keys}, **write(self)}

    def plain(self) -> Any:
        """As plain YAML values, without what is at its default."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _truths(value: Any) -> bool:
    """Whether ``value`` is true or false, or a list that holds one of them."""
    return isinstance(value, bool) or (isinstance(value, list) and any(isinstance(item, bool) for item in value))


def _takes_truth(annotation: Any) -> bool:
    """Whether a field of this type may be true or false; Python counts them as the numbers 1 and 0."""
    parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    if annotation in (bool, Any) or any(isinstance(part, bool) for part in parts):
        return True
    numbers = annotation in (int, float, str)
    return not numbers and (not parts or any(_takes_truth(part) for part in parts if part is not type(None)))


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """A sentence with the closest name."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {what}.{hint} Known: {', '.join(sorted(known))}."


def refusal(sentence: str, *place: Any) -> PydanticCustomError:
    """An error whose text is ``sentence``; ``place`` are the keys below the mapping that is being read."""
    return PydanticCustomError("refused", "{sentence}", {"sentence": sentence, "place": list(place)})


def explained(error: ValidationError, values: Any, name: str) -> UserError:
    """The first mistake as one sentence: ``name: the.path: what is wrong``."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx") or {}
    path = _path([*first["loc"], *context.get("place", ())], values, keep_last=first["type"] == "missing")
    path += [str(part) for part in context.get("exact", ())]
    if first["type"] in ("union_tag_invalid", "union_tag_not_found") and "discriminator" in context:
        path.append(str(context["discriminator"]).strip("'"))
    where = ".".join(path)
    return UserError(f"{name}: {where + ': ' if where else ''}{_sentence(first, context)}")


def placed(error: ValidationError, values: Any) -> PydanticCustomError:
    """The first mistake of a schema inside another, as a refusal at its place."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx") or {}
    keep_last = first["type"] == "missing"
    path = [*_path([*first["loc"], *context.get("place", ())], values, keep_last=keep_last), *context.get("exact", ())]
    return misplaced(_sentence(first, context), *path)


def misplaced(sentence: str, *path: str) -> PydanticCustomError:
    """An error at a key that the file may lack: ``path`` is shown as it is."""
    return PydanticCustomError("refused", "{sentence}", {"sentence": sentence, "place": [], "exact": list(path)})


def _path(loc: Sequence[Any], values: Any, *, keep_last: bool) -> list[str]:
    """The parts of pydantic's location that are keys of the file; its own words for unions are left out."""
    parts, at = [], values
    for number, part in enumerate(loc):
        if (isinstance(at, Mapping) and part in at) or (
            isinstance(at, list) and isinstance(part, int) and part < len(at)
        ):
            at = at[part]
        elif not (keep_last and number == len(loc) - 1):
            continue
        parts.append(str(part))
    return parts


def _sentence(first: Any, context: Mapping[str, Any]) -> str:
    match first["type"]:
        case "refused":
            return str(context["sentence"])
        case "missing":
            return "is missing; add this key."
        case "union_tag_invalid":
            known = [word.strip().strip("'") for word in str(context["expected_tags"]).split("',")]
            return unknown(f"value {str(context['tag'])!r}", str(context["tag"]), known)
        case "union_tag_not_found":
            return "is missing; it says what this is."
        case "literal_error":
            return f"{_shown(first['input'])} is none of {context['expected']}."
        case "model_type" | "model_attributes_type" | "dict_type":
            if first["input"] is None:
                return "is empty; give keys with values."
            return f"{_shown(first['input'])} is no mapping; give keys with values."
        case "list_type":
            return f"{_shown(first['input'])} is no list; give one, as in [a, b]."
        case "too_short":
            return "is empty; give at least one."
        case "string_pattern_mismatch":
            return f"{_shown(first['input'])} is no plain name: letters, digits, - and _, at most 60."
    message = str(first["msg"])
    return f"{_shown(first['input'])}: {message[0].lower()}{message[1:]}."


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
