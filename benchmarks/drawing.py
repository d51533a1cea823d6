"""Draws the charts as SVG and PNG. The one module that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from .charts import CHARTS, Line, Panel, lines, memory_panels, panels
from .results import Run
from .servers import TRIOSERVE

# README is read on white and on nearly black: the background is left transparent, and these stand out from both.
TEXT, GRID, PEER, OURS, OURS_H11 = "#768390", "#8b949e55", "#9aa4af", "#e8590c", "#f2a65a"
PEERS = ("#4c8dd6", "#3fa66a", "#a371f7", "#c9a227", "#d6568c", "#17a2b8", "#8b949e")
COLUMNS = 2
WIDTH, BAR_HEIGHT, PANEL_HEIGHT = 10.0, 0.24, 0.75  # inches
RESOLUTION = 160  # dots per inch, of the PNG


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw all charts for which there are figures. Returns the files."""
    written: list[Path] = []
    with mpl.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "text.color": TEXT,
            "axes.labelcolor": TEXT,
            "axes.edgecolor": TEXT,
            "xtick.color": TEXT,
            "ytick.color": TEXT,
            "svg.hashsalt": "trioserve",  # else its identifiers differ from one drawing to the next
        }
    ):
        for name, label, titles in CHARTS:
            if found := panels(run, titles):
                written += save(draw_panels(found, label), folder / name)
        if found := memory_panels(run):
            written += save(draw_panels(found, "Idle connections (least is best)"), folder / "idle")
        if grown := lines(run):
            written += save(draw_lines(grown), folder / "growth")
    return written


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure in both forms, the SVG without a date, so that the same figures make the same file."""
    vector, pixels = path.with_suffix(".svg"), path.with_suffix(".png")
    figure.savefig(vector, transparent=True, metadata={"Date": None})
    figure.savefig(pixels, transparent=True, dpi=RESOLUTION)
    return [vector, pixels]


def draw_panels(found: Sequence[Panel], label: str) -> Figure:
    """Panels of horizontal bars, each with an axis of its own that begins at zero."""
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    most = max(len(panel.bars) for panel in found)
    figure = Figure(figsize=(WIDTH, rows * (PANEL_HEIGHT + BAR_HEIGHT * most)), layout="constrained")
    figure.suptitle(label, fontsize=11, color=TEXT)
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place < len(found):
            draw_bars(axes, found[place])
        else:
            axes.set_axis_off()
    return figure


def draw_bars(axes: Axes, panel: Panel) -> None:
    """One panel: a bar for each median, a thin line from the least to the most, and the figure beside it."""
    names = [bar.server for bar in panel.bars]
    middles = [bar.middle for bar in panel.bars]
    axes.barh(names, middles, color=[color_of(name) for name in names], height=0.72)
    furthest = max(bar.most for bar in panel.bars)
    for place, bar in enumerate(panel.bars):
        axes.hlines(place, bar.least, bar.most, color=TEXT, linewidth=1)
        weight = "bold" if bar.server.startswith(TRIOSERVE) else "normal"
        digits = 2 if furthest < 10 else 1 if furthest < 1000 else 0
        axes.text(
            bar.most + furthest * 0.015, place, f"{bar.middle:,.{digits}f}", va="center", fontsize=8, fontweight=weight
        )
    axes.set_title(panel.title, fontsize=10, loc="left", color=TEXT)
    axes.set_xlim(0, furthest * 1.15)
    axes.invert_yaxis()
    axes.tick_params(axis="both", length=0, labelsize=8)
    for text in axes.get_yticklabels():
        if text.get_text().startswith(TRIOSERVE):
            text.set_fontweight("bold")
    tidy(axes, "x")


def color_of(server: str) -> str:
    """Ours in colour, the others in grey."""
    return OURS if server == TRIOSERVE else OURS_H11 if server.startswith(TRIOSERVE) else PEER


def draw_lines(grown: Sequence[Line]) -> Figure:
    """The cost as connections grow: all servers, and beside them, as there is much between them, the quicker ones."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    figure.suptitle("CPU µs per request, as connections grow (least is best)", fontsize=11, color=TEXT)
    left, right = figure.subplots(1, 2)
    colors = cycle(PEERS)
    palette = {
        line.server: color_of(line.server) if line.server.startswith(TRIOSERVE) else next(colors) for line in grown
    }
    ours = [value for line in grown if line.server.startswith(TRIOSERVE) for _, value in line.points]
    highest = max(value for line in grown for _, value in line.points)
    for axes, top in ((left, highest), (right, min(highest, 1.5 * max(ours or [highest])))):
        for line in grown:
            is_ours = line.server.startswith(TRIOSERVE)
            axes.plot(
                [number for number, _ in line.points],
                [value for _, value in line.points],
                color=palette[line.server],
                linewidth=2.6 if is_ours else 1.4,
                zorder=3 if is_ours else 2,
                marker="o",
                markersize=5 if is_ours else 3,
                label=line.server,
            )
        axes.set_xscale("log", base=2)
        numbers = sorted({number for line in grown for number, _ in line.points})
        axes.set_xticks(numbers)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0, top * 1.08)
        axes.set_xlabel("connections")
        tidy(axes, "y")
    left.set_title("All", fontsize=10, loc="left", color=TEXT)
    right.set_title("The lower part, enlarged", fontsize=10, loc="left", color=TEXT)
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def tidy(axes: Axes, values: str) -> None:
    """Leave of frame and grid only what guides the eye; ``values`` is the axis that has the figures."""
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == ("left" if values == "x" else "bottom"))
    axes.grid(visible=True, axis="x" if values == "x" else "y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
