"""Shape annotations: ``Float[Tensor, "batch pos d_model"]``.

The tests check every one of them (jaxtyping + beartype). Outside the tests jaxtyping need not be installed;
the annotations are then plain text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Num
else:
    try:
        from jaxtyping import Bool, Float, Int, Num
    except ImportError:

        class _Plain:
            """Stands in for a jaxtyping dtype: subscripting gives the array type back."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Int = Num = _Plain

__all__ = ["Bool", "Float", "Int", "Num", "Tensor"]
