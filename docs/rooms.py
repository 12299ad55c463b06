"""A picture of the rooms of the house, drawn from the imports as they are: an SVG for the page on architecture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from html import escape

PACKAGES = ("tunescope", "workbench", "probes", "interventions", "dashboards")
TIERS = (
    ("tunescope.cli",),
    ("tunescope.demo",),
    ("dashboards",),
    ("tunescope.look", "tunescope.contracts"),
    ("tunescope.experiments", "tunescope.bench"),
    ("probes",),
    ("interventions",),
    ("workbench.organisms", "workbench.behaviour", "workbench.recording"),
    ("workbench.prompts", "workbench.models", "workbench.engine"),
    ("workbench.runs", "workbench.stats", "workbench.figures"),
    ("workbench",),
)
"""From the top down, as the import rules have it; ``workbench`` alone are its single files."""
WIDTH, HEIGHT, GAP = 900, 34, 58


def room_of(module: str) -> str:
    """The room that a module is in: a sub-package, or the package."""
    parts = module.split(".")
    room = ".".join(parts[:2])
    return room if room in {name for tier in TIERS for name in tier} else parts[0]


def imports_between(pairs: Iterable[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """(room, room it imports from) -> how many imports, of (module, imported module)."""
    rooms = ((room_of(importer), room_of(imported)) for importer, imported in pairs)
    return Counter(pair for pair in rooms if pair[0] != pair[1])


def places() -> dict[str, tuple[float, float]]:
    """Room -> the middle of its box."""
    return {
        room: (WIDTH * (number + 1) / (len(tier) + 1), 30 + row * GAP)
        for row, tier in enumerate(TIERS)
        for number, room in enumerate(tier)
    }


def picture(imports: Counter[tuple[str, str]]) -> str:
    """The SVG: an arrow per pair of rooms, the darker the more imports; the number on hover."""
    at, most = places(), max(imports.values(), default=1)
    lines = []
    for (above, below), count in sorted(imports.items(), key=lambda entry: entry[1]):
        if above not in at or below not in at:
            continue
        (x, y), (to_x, to_y) = at[above], at[below]
        shade = 0.15 + 0.85 * count / most
        lines.append(
            f'<path d="M{x:.0f} {y:.0f} Q {(x + to_x) / 2 + (to_y - y) / 4:.0f} {(y + to_y) / 2:.0f} '
            f'{to_x:.0f} {to_y:.0f}" fill="none" stroke="#35618e" stroke-opacity="{shade:.2f}" stroke-width="1.5">'
            f"<title>{escape(above)} imports from {escape(below)}: {count}</title></path>"
        )
    boxes = [
        f'<g><rect x="{x - 90:.0f}" y="{y - HEIGHT / 2:.0f}" width="180" height="{HEIGHT}" rx="6" fill="#eef3f8" '
        f'stroke="#35618e"/><text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" font-family="sans-serif" '
        f'font-size="14" fill="#1b2733">{escape(room)}</text></g>'
        for room, (x, y) in at.items()
    ]
    height = 30 + len(TIERS) * GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
    return f'{head} aria-label="The rooms and what imports what">{"".join([*lines, *boxes])}</svg>\n'


def rooms_svg() -> str:
    """The picture of the packages as they are installed."""
    import grimp

    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    pairs = (
        (module, imported) for module in graph.modules for imported in graph.find_modules_directly_imported_by(module)
    )
    return picture(imports_between(pairs))
