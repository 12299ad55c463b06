"""Figures of a report: each as JSON, and one script that unpacks plotly and draws them, so that a report stays small.

Plotly's script is compressed (1.4 of 4.8 MB) and unpacked by the browser's own ``DecompressionStream``.
"""

from __future__ import annotations

import base64
import gzip
from functools import cache
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from dashboards.plain_figures import without_fetching

_DRAW = """
(async () => {
  const packed = Uint8Array.from(atob("%s"), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  for (const given of document.querySelectorAll('script[type="application/json"]')) {
    const figure = JSON.parse(given.textContent);
    await Plotly.newPlot(given.dataset.figure, figure.data, figure.layout, {displaylogo: false, responsive: true});
  }
})();
"""


def figure_html(name: str, figure: go.Figure, place: str) -> str:
    """The place of a figure and its numbers; ``place`` is the id of its element."""
    title = figure.layout.title.text or name.replace("_", " ")
    without_fetching(figure, name)
    numbers = (figure.to_json() or "").replace("<", "\\u003c")
    label = escape(f"Figure: {title}", quote=True)
    return (
        f'<figure role="img" aria-label="{label}"><div id="{place}"></div>'
        f'<script type="application/json" data-figure="{place}">{numbers}</script></figure>'
        "<noscript><p>This figure needs JavaScript; the table below has its numbers.</p></noscript>"
    )


@cache
def drawing_script() -> str:
    """What draws every figure of the page; it stands at the end of the body."""
    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode("utf-8"), mtime=0)).decode()
    return f"<script>{_DRAW % packed}</script>"
