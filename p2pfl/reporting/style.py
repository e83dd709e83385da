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
"""Stand-ins; `CSS` has what they stand for."""
FILE = Ink("#1b1f24", "#5b6570", "#dfe3e7", "#ffffff")

PAGE_PALETTE = tuple(f"#0000{number:02x}" for number in range(0x10, 0x18))
"""Stand-ins for blue, orange, green, vermillion, sky, purple, yellow, grey."""
FILE_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#1b1f24")
"""Blue first. Source: Okabe, Ito (2002), "Color universal design", with two more."""
SHADES = ("#fde9c9", "#e6a94a", "#62a3a5", "#1f74a8", "#143f78")
"""From low to high, of a figure that nodes are coloured by."""

CSS = {
    **dict(zip(PAGE, ("--ink", "--muted", "--rule", "--paper"), strict=True)),
    **{color: f"--c{i}" for i, color in enumerate(PAGE_PALETTE)},
}

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
PAGE_STYLE: Any = {
    **_axes(PAGE),
    "svg.fonttype": "none", "svg.hashsalt": "p2pfl", "axes.unicode_minus": False,
    "axes.facecolor": "none", "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "grid.color": PAGE.rule, "grid.linewidth": 0.6,
    "xtick.labelcolor": PAGE.ink, "ytick.labelcolor": PAGE.ink, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "legend.frameon": False, "legend.labelcolor": PAGE.ink,
}  # fmt: skip
