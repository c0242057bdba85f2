"""How methods look, in every figure: colours, markers, lines, labels; and the style of all."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axis import Axis
from matplotlib.ticker import NullFormatter, StrMethodFormatter


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every figure. Colours are told apart by colour-blind readers; families by line style:
    solid for first-order methods, broken for influence functions, dotted for projections, a thick black line for ours,
    dash-dotted for what is measured by training, none for what is known at a few horizons only. CG, LiSSA and LiSSA-H
    often lie on each other: long dashes, dashes with dots and short dashes, with markers at places of their own, tell
    them apart in print, too."""

    label: str
    colour: str
    marker: str
    line: str | tuple = "-"
    width: float = 1.4


LOOK: dict[str, Look] = {
    "grad_dot": Look("Grad-Dot", "#0072B2", "o"),
    "grad_cos": Look("Grad-Cos", "#56B4E9", "s"),
    "datainf": Look("DataInf", "#332288", "^"),
    "cg": Look("CG", "#D55E00", "v", (0, (7, 2))),
    "lissa": Look("LiSSA", "#E69F00", "D", (0, (4, 1.5, 1, 1.5))),
    "lissa_h": Look("LiSSA-H", "#8C510A", "P", (0, (2, 1.2))),
    "ekfac": Look("EK-FAC", "#CC79A7", "X", (0, (4, 2))),
    "exact": Look("Exact", "#882255", "*", (0, (4, 2))),
    "timed": Look("influence, λ = 1/(ηT)", "#AA4499", "p", (0, (4, 1.2, 1, 1.2, 1, 1.2))),
    "trak": Look("TRAK", "#009E73", "h", ":"),
    "adjoint": Look("exact derivative (adjoint)", "#B2182B", "s", ""),
    "lft": Look("LFT (ours)", "#111111", "d", "-", 2.2),
    "lft_whole": Look("LFT, groups as a whole", "#4D4D4D", "", (0, (2, 2)), 1.6),
    "random": Look("at random", "#777777", ""),
    "alike": Look("alike", "#A0A0A0", "", (0, (5, 1.5, 1, 1.5))),
    "further_first": Look("further training, first epoch", "#999933", "<", (0, (5, 1.5, 1, 1.5))),
    "further_last": Look("further training, last epoch", "#117733", ">", (0, (5, 1.5, 1, 1.5))),
    "ceiling": Look("noise ceiling", "#666666", "", (0, (1, 1)), 1.0),
}
RULES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
PUBLISHED = "published"  # the open markers, in legends
STYLE = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "figure.dpi": 100,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # where it would be; else every drawing searches for whatever lies in its way
}


def plain_log(axis: Axis) -> None:
    """Numbers of a logarithmic axis as one writes them, 1 and 10 in place of powers; all of them on a short one."""
    low, high = axis.get_view_interval()
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(StrMethodFormatter("{x:g}") if high < 9 * low else NullFormatter())
