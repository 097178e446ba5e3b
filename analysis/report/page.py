"""The pieces that a report is made of: a page, figures and tables as escaped, self-contained HTML.

Nothing on a page asks for anything elsewhere: plotly's script, the style and the data are inside,
and the page's own policy forbids the browser every connection.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd
from plotly.offline import get_plotlyjs

from scaling.analysis.figures.style import DARK, POLICY, escape

if TYPE_CHECKING:
    import plotly.graph_objects as go

ASSETS = Path(__file__).parent


@dataclass(frozen=True)
class Column:
    """A table's column. `kind`: number (right-aligned), text, or wrap (long text)."""

    key: str
    heading: str
    show: Callable[[Any], str] = str
    kind: str = "number"


def table(
    rows: pd.DataFrame, columns: Sequence[Column], *, caption: str = "", sortable: bool = False
) -> str:
    """A table that scrolls inside itself on a narrow screen. Every cell is escaped."""
    classes = {"number": "", "text": ' class="text"', "wrap": ' class="text wrap"'}
    heads = []
    for column in columns:
        heading = escape(column.heading)
        if sortable:
            heading = f'<button type="button">{heading}</button>'
        sort = ' aria-sort="none"' if sortable else ""
        heads.append(f'<th scope="col"{sort}{classes[column.kind]}>{heading}</th>')
    body = []
    for row in rows.to_dict("records"):
        cells = []
        for place, column in enumerate(columns):
            value = row[column.key]
            attributes = classes[column.kind]
            if column.key == "status" and value != "finished":
                attributes = ' class="text bad"'
            if column.kind == "number":
                plain = "" if pd.isna(value) else repr(float(value))
                attributes += f' data-value="{plain}"'
            tag, scope = ("td", "") if place else ("th", ' scope="row"')
            cells.append(f"<{tag}{scope}{attributes}>{escape(column.show(value))}</{tag}>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    wide = len(columns) > 6 or any(column.kind == "wrap" for column in columns)
    outer = "scroll" + " wide" * wide + " tall" * (len(rows) > 16)
    label = escape(caption or f"table of {len(rows)} rows")
    above = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return (
        f'{above}<div class="{outer}" tabindex="0" role="region" aria-label="{label}">'
        f"<table{' class=sortable' if sortable else ''}>"
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def figure(
    key: str, title: str, text: str, drawn: go.Figure, data: pd.DataFrame, *, alt: str,
    wide: bool = False,
) -> str:  # fmt: skip
    """A figure with its caption, its data as CSV and buttons that save it as SVG or PNG.

    The page counts its figures itself (in page.css).
    """
    spec = (drawn.to_json() or "").replace("<", "\\u003c")  # no user text may end the script
    csv = quote(data.to_csv(index=False, lineterminator="\n"))
    return (
        f'<figure class="numbered{" wide" if wide else ""}"><div class="plot" id="{key}" '
        f'role="img" aria-label="{escape(alt)}" style="height:{drawn.layout.height}px"></div>'
        f'<script type="application/json">{spec}</script>'
        f"<figcaption><b>{escape(title)}</b> {escape(text)}"
        f'<span class="links"><a download="{key}.csv" href="data:text/csv;charset=utf-8,{csv}">'
        'Data (CSV)</a><button type="button" data-save="svg">SVG</button>'
        '<button type="button" data-save="png">PNG</button></span></figcaption></figure>'
    )


def strip(source: str, alt: str, text: str = "") -> str:
    """A film strip: an image (its URI), and `text` under it."""
    under = f"<p>{escape(text)}</p>" if text else ""
    return f'<div><img src="{source}" alt="{escape(alt)}">{under}</div>'


def strips(shown: Sequence[str], title: str, text: str, *, long: bool = False) -> str:
    """Film strips (of `strip`) with their caption. long: each takes the whole width."""
    kind = "strips long" if long else "strips"
    return (
        f'<figure class="numbered wide"><div class="{kind}">{"".join(shown)}</div><figcaption>'
        f"<b>{escape(title)}</b> {escape(text)}</figcaption></figure>"
    )


def head(study: str, digest: str, *, refresh: int = 0) -> str:
    """How a document begins, up to its style. `digest`: of what the page is made of. refresh:
    seconds after which a browser loads it again; 0: never."""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="made-of" content="sha256:{digest}">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"{again}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(study)}: scaling law</title><link rel="icon" href="data:,">'
    )


def page(opening: str, header: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole document. `opening`: of `head`. `sections`: (key, title, HTML), in order."""
    links = "".join(
        f'<li><a href="#{key}-section">{escape(title)}</a></li>' for key, title, _ in sections
    )
    body = "".join(
        f'<section id="{key}-section" aria-labelledby="{key}-title"><h2 id="{key}-title">'
        f"{escape(title)}</h2>{content}</section>"
        for key, title, content in sections
    )
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    script = (ASSETS / "page.js").read_text(encoding="utf-8")
    return (
        f"{opening}<style>{style}</style></head><body>"
        '<a class="skip" href="#content">Skip to the figures</a>'
        f'<header>{header}<nav aria-label="Contents"><ul>{links}</ul></nav></header>'
        "<noscript><p>The figures need JavaScript; the numbers behind them are in the CSV links."
        "</p></noscript>"
        f'<main id="content">{body}</main><footer>{footer}</footer>'
        f'<script type="application/json" id="dark-colours">{json.dumps(DARK)}</script>'
        f"<script>{get_plotlyjs()}</script><script>{script}</script></body></html>\n"
    )
