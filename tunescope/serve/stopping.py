"""Stop texts: nothing of one, and nothing after it, is given out."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Holds back what might be the beginning of a stop text until the next piece tells."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = list(stops), ""
        self.ended = False

    def add(self, text: str, *, last: bool = False) -> str:
        """What may be given out now. ``last``: nothing follows."""
        if self.ended:
            return ""
        whole = self._held + text
        places = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if places:
            self.ended, self._held = True, ""
            return whole[: min(places)]
        keep = 0 if last else max((_overlap(whole, stop) for stop in self._stops), default=0)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` begin ``stop``."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
