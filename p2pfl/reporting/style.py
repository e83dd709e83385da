"""The ink, the palettes and the matplotlib settings of every picture: one style, in two kinds of colours.

A page takes its colours from CSS, so that one drawing is legible on light, dark and printed pages: its pictures are
drawn in stand-ins, of which each becomes a CSS variable (`var(--ink)`, `var(--c0)`, ...). A file has the light colours
of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Ink(NamedTuple):
    """The inks of everything but the data."""

    ink: str
    muted: str
    rule: str
    paper: str


PAGE = Ink("#000001", "#000002", "#000003", "#000004")
"""Stand-ins; `CSS` has what they stand for, colour by colour."""
FILE = Ink("#1b1f24", "#5b6570", "#dfe3e7", "#ffffff")

PAGE_PALETTE = tuple(f"#0000{number:02x}" for number in range(0x10, 0x18))
"""Stand-ins for blue, orange, green, vermillion, sky, purple, yellow, grey."""
FILE_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#1b1f24")
"""Blue first. Source: Okabe, Ito (2002), "Color universal design", with two more."""
SHADES = ("#fde9c9", "#e6a94a", "#62a3a5", "#1f74a8", "#143f78")
"""From low to high, of a figure that nodes are coloured by."""


class Paint(NamedTuple):
    """All colours of a figure of the report."""

    ink: str
    muted: str
    rule: str
    paper: str
    blue: str
    orange: str
    green: str
    vermillion: str
    sky: str
    purple: str
    yellow: str
    grey: str

    @property
    def lines(self) -> tuple[str, ...]:
        """Those for data, in order."""
        return self[4:]


ON_PAGE = Paint(*PAGE, *PAGE_PALETTE)
LIGHT = Paint(*FILE, "#0072b2", "#d98a00", "#00835f", "#d55e00", "#3f9fd6", "#b5679a", "#a89a00", "#8a949e")
"""A figure of the report as a file: what the page is in the light."""
CSS = Paint("--ink", "--muted", "--rule", "--paper", *(f"--c{i}" for i in range(len(PAGE_PALETTE))))
"""What the page calls them."""

TEXT: Any = {
    "text.parse_math": False, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8,
}  # fmt: skip
"""For a picture without axes."""


def _axes(colors: Ink) -> Any:
    return {
        **TEXT,
        "text.color": colors.ink, "axes.labelcolor": colors.ink, "axes.edgecolor": colors.muted,
        "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
        "xtick.color": colors.muted, "ytick.color": colors.muted,
    }  # fmt: skip


FILE_STYLE: Any = _axes(FILE)


def of_report(paint: Paint) -> Any:
    """Return the settings for a figure of the report."""
    return {
        **_axes(Ink(*paint[:4])),
        "axes.unicode_minus": False,
        "axes.facecolor": "none", "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
        "grid.color": paint.rule, "grid.linewidth": 0.6,
        "xtick.labelcolor": paint.ink, "ytick.labelcolor": paint.ink, "xtick.major.width": 0.6,
        "ytick.major.width": 0.6, "legend.frameon": False, "legend.labelcolor": paint.ink,
    }  # fmt: skip
