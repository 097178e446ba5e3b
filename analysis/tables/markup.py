"""Tables written for readers: Markdown, LaTeX, and those that consoles draw with + and |."""

from __future__ import annotations

import re

import pandas as pd

from scaling.errors import UserError

_RULES = r"\\(?:top|mid|bottom)rule|\\hline|\\c(?:mid)?(?:rule|line)(?:\([^)]*\))?\{[^}]*\}"


def is_markup(text: str) -> bool:
    """Whether the first lines of a file are such a table."""
    first = text.lstrip().splitlines()[0] if text.strip() else ""
    return bool(re.match(r"^\s*\|.*\|\s*$|^\s*\+[-=+]+\+\s*$", first)) or is_latex(text)


def is_latex(text: str) -> bool:
    body = [line for line in text.splitlines() if line.strip()][:50]
    rows = [line for line in body if "&" in line and re.search(r"\\\\(\[[^\]]*\])?\s*(\\|$)", line)]
    return len(rows) > 1 and (r"\begin{tab" in text or 2 * len(rows) > len(body))


def read_markup(text: str) -> pd.DataFrame:
    """The one table of a text. Raises UserError for none, several, or rows of unlike length."""
    if is_latex(text):
        return _table(_latex(text), "LaTeX")
    text = re.sub(r"(?m)^\s*\+[-=+]+\+\s*$\n?", "", text) if "+-" in text or "+=" in text else text
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip().startswith("|"):
            blocks[-1].append(line.strip())
        elif blocks[-1]:
            blocks.append([])
    tables = [b for b in blocks if len(b) > 1]
    if len(tables) != 1:
        raise UserError(f"{len(tables)} Markdown tables: give a file with one")
    lines = [line for line in tables[0] if not re.fullmatch(r"\|?[\s:|-]+\|?", line)]
    return _table([_row(line) for line in lines], "Markdown")


def _table(rows: list[list[str]], kind: str) -> pd.DataFrame:
    header, body = rows[0], rows[1:]
    if not body:
        raise UserError(f"0 {kind} tables with rows: give a file with one")
    ragged = [i for i, row in enumerate(body) if len(row) != len(header)]
    if ragged:
        raise UserError(f"line {ragged[0] + 3} of the table has another number of cells")
    table = pd.DataFrame(body, columns=[re.sub(r"[*`$]", "", h).strip() for h in header])
    return table.replace("", None)


def _row(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    return [c.replace("\\|", "|").strip() for c in cells]


def _latex(text: str) -> list[list[str]]:
    """Rows of the one tabular of a text, without rules and comments."""
    tabulars = len(re.findall(r"\\begin\{(?:tabular|longtable|tabularx)\*?\}", text))
    if tabulars > 1:
        raise UserError(f"{tabulars} LaTeX tables: give a file with one")
    inside = re.search(
        r"\\begin\{(tabular|longtable|tabularx)(\*?)\}(.*?)\\end\{\1\2\}", text, re.S
    )
    if inside:
        text = inside.group(3)
    text = re.sub(r"(?<!\\)%.*", "", text)
    text = re.sub(_RULES, "", text)
    if r"\multirow" in text or r"\multicolumn" in text:
        raise UserError(r"\multirow or \multicolumn in a LaTeX table: write each cell out")
    rows = []
    for line in re.split(r"\\\\(?:\[[^\]]*\])?", text):
        cells = [_latex_cell(c) for c in re.split(r"(?<!\\)&", line)]
        if len(cells) > 1:
            rows.append(cells)
    if rows:  # what stands before the first row: the columns' alignment
        rows[0][0] = re.sub(r"^(\{[^}]*\}|\[[^\]]*\]|\s)+", "", rows[0][0])
    return rows


def _latex_cell(text: str) -> str:
    text = re.sub(
        r"\\(?:textbf|mathbf|textit|emph|text|mathrm|underline)\s*\{([^{}]*)\}", r"\1", text
    )
    return re.sub(r"\\([%&_#$])", r"\1", text).replace("~", " ").strip()
