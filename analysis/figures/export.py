"""Figures as PNG or SVG files, drawn by a Chromium that is on this machine. Nothing is downloaded.

The figure is put on an empty page with plotly's own script, the browser turns it into an image and
prints the page's text, which is that image as a data URI.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from plotly.offline import get_plotlyjs

from scaling.analysis.figures.style import POLICY
from scaling.errors import UserError

if TYPE_CHECKING:
    import plotly.graph_objects as go

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_MACOS = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
# No first-run page, no updates, no background request: the browser opens one local file.
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_PAGE = """<!doctype html><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<body><div id="figure"></div><script>{script}</script><script>
const figure = {figure};
Plotly.newPlot("figure", figure.data, figure.layout, {{staticPlot: true}})
  .then(drawn => Plotly.toImage(drawn, {options}))
  .then(uri => {{ document.body.textContent = uri; }})
  .catch(error => {{ document.body.textContent = "failed: " + error; }});
</script>"""


def find_browser() -> str | None:
    """Path of Chromium or Chrome: $BROWSER_PATH, else the usual names; None when there is none."""
    given = os.environ.get("BROWSER_PATH")
    if given:
        return shutil.which(given)
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    return found or (str(_MACOS) if _MACOS.exists() else None)


def browser_command(browser: str, profile: Path) -> list[str]:
    """The browser with an empty profile; for root without its sandbox, which cannot start."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    return [browser, *FLAGS, *(["--no-sandbox"] if root else []), f"--user-data-dir={profile}"]


def write_png(
    figure: go.Figure, path: Path, *, width: int = 960, height: int | None = None,
    scale: float = 2, within: Path | None = None,
) -> Path:  # fmt: skip
    """Draw a figure into a PNG of `width * scale` x `height * scale` pixels; returns the path.

    `height` None: the figure's own. within: a folder for what the browser needs meanwhile; None:
    that of temporary files. Raises UserError when no browser is found or it fails.
    """
    return _write(figure, path, "png", width, height, scale, within)


def write_svg(
    figure: go.Figure, path: Path, *, width: int = 960, height: int | None = None,
    within: Path | None = None,
) -> Path:  # fmt: skip
    """Draw a figure into an SVG; returns the path. Arguments and errors as of `write_png`."""
    return _write(figure, path, "svg", width, height, 1, within)


def _write(
    figure: go.Figure, path: Path, format: str, width: int, height: int | None, scale: float,
    within: Path | None,
) -> Path:  # fmt: skip
    browser = find_browser()
    if browser is None:
        raise UserError(
            f"{path.name}: no Chromium or Chrome found to draw it (looked at $BROWSER_PATH = "
            f"{os.environ.get('BROWSER_PATH', '')!r} and for {', '.join(_NAMES)}). Install one "
            f"(Debian: apt-get install chromium) or save the figure from report.html"
        )
    height = height or figure.layout.height or 460
    script = figure.to_json().replace("<", "\\u003c")
    options = {"format": format, "width": width, "height": height, "scale": scale}
    page = _PAGE.format(
        policy=POLICY, script=get_plotlyjs(), figure=script, options=json.dumps(options)
    )
    folder = Path(tempfile.mkdtemp(dir=within))
    try:
        source = folder / "figure.html"
        source.write_text(page, encoding="utf-8")
        command = browser_command(browser, folder / "profile")
        command += ["--virtual-time-budget=30000", "--dump-dom", source.as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{path.name}: {browser} did not draw it ({error})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    dom = done.stdout.decode("utf-8", "replace")
    found = re.search(r"<body>data:image/[a-z+]+([;,][^<]*)</body>", dom)
    if found is None:
        said = re.search(r"<body>(failed:[^<]*)", dom)
        reason = said[1] if said else done.stderr.decode("utf-8", "replace")[-300:]
        raise UserError(f"{path.name}: {browser} did not draw it ({reason.strip()})")
    content = found[1].removeprefix(";base64,")
    if content.startswith(","):
        image = unquote_to_bytes(content[1:])
    else:
        image = base64.b64decode(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)
    return path
