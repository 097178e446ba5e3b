"""Figures as files, through a browser that may not be there."""

import xml.etree.ElementTree as ET
from pathlib import Path

import plotly.graph_objects as go
import pytest
from PIL import Image

from scaling.analysis.figures.export import find_browser, write_png, write_svg

FIGURE = go.Figure(go.Scatter(x=[1, 2], y=[2, 1], name="<b>a & b</b>"), {"showlegend": True})
needs_browser = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium or Chrome found (set BROWSER_PATH)"
)


@needs_browser
def test_png_has_the_size_and_the_ink(tmp_path: Path) -> None:
    path = write_png(FIGURE, tmp_path / "new" / "figure.png", width=400, height=300, scale=1.5)
    image = Image.open(path).convert("RGB")
    assert image.size == (600, 450)
    colours = image.getcolors(1 << 20)
    assert colours is not None and len(colours) > 10


@needs_browser
def test_svg_is_whole(tmp_path: Path) -> None:
    path = write_svg(FIGURE, tmp_path / "figure.svg", width=400, height=300)
    root = ET.parse(path).getroot()
    assert root.tag.endswith("svg") and root.get("width") == "400"
    assert "a & b" in "".join(root.itertext())


def test_no_browser_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"figure\.png: no Chromium .*apt-get install chromium"):
        write_png(FIGURE, tmp_path / "figure.png")


def test_a_browser_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "browser"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(broken))
    with pytest.raises(ValueError, match=r"did not draw it .*out of order"):
        write_svg(FIGURE, tmp_path / "figure.svg")
    assert not (tmp_path / "figure.svg").exists()
