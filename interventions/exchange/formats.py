"""Which formats can hold a recipe, told from the recipe alone, before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from interventions.exchange.adapter import adapter_kind
from interventions.exchange.bake import check_everywhere
from interventions.exchange.control_vectors import check_constant
from interventions.exchange.module import check_module
from interventions.recipe import Recipe
from workbench.errors import NotSupported, unknown_name


def reason_against(recipe: Recipe, to: str) -> str:
    """Why a format cannot hold a recipe, in one sentence; empty where nothing in the recipe speaks against it.

    Args:
        recipe: Any recipe.
        to: ``gguf`` (a control vector), ``model`` (weights with the recipe in them), ``adapter`` (PEFT) or ``module``
            (a Python file with hooks).

    Returns:
        The reason, or an empty text; what hangs on the model (its biases, its norms) is checked when it is written.

    Raises:
        UserError: There is no such format.

    Example:
        ``reason_against(Recipe([HeadScale({"L1H2": 0.0})]), "gguf")`` says that a control vector holds offsets alone.
    """
    if to not in _CHECKS:
        raise unknown_name("format", to, _CHECKS)
    if not len(recipe):
        return "The recipe is empty."
    try:
        _CHECKS[to](recipe)
    except NotSupported as error:
        return str(error)
    return ""


def _each(check: Callable[..., None]) -> Callable[[Recipe], None]:
    def checked(recipe: Recipe) -> None:
        for place, intervention in enumerate(recipe):
            check(intervention, f"{intervention.kind} (number {place} of the recipe)")

    return checked


_CHECKS: Mapping[str, Callable[[Recipe], object]] = {
    "gguf": _each(check_constant),
    "model": _each(check_everywhere),
    "adapter": adapter_kind,
    "module": check_module,
}
