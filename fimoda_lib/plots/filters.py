"""One filter, all methods: what each keeps of a direction, over the spectrum of the Gauss-Newton matrix."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..derivatives.curvature import GaussNewton, Reduction, recommended_damping
from ..derivatives.gradients import Gradients
from ..experiments.panel import Panel, finished
from ..experiments.settings import Settings
from .look import LOOK

HORIZONS = [  # light to dark
    {"color": colour, "lw": 1.8, "label": f"further training, {words}"}
    for colour, words in (("#9ecae1", "one epoch"), ("#4292c6", "a tenth of all"), ("#08306b", "all epochs"))
]
GRAD_DOT = {"color": LOOK["grad_dot"].colour, "lw": 1.8, "label": "Grad-Dot"}
DAMPED = {"color": "#666666", "lw": 1, "ls": ":", "label": r"damping $\lambda=1/(\eta T)$"}
CG = {"color": LOOK["cg"].colour, "ls": "--", "lw": 1.6, "label": "CG, the paper's damping"}
BARS = {"color": "#D9D9D9", "label": "where test gradients lie"}
WHAT = (
    "What T steps with learning rate η keep of a gradient along an eigenvector of the Gauss-Newton matrix with "
    "eigenvalue σ: (1 - (1 - ησ)^T)/(ησT). Grad-Dot keeps all, an influence function λ/(σ + λ)."
)
MARKS = "Dotted: λ = 1/(ηT); dashed: the paper's largest damping; grey: spread of the test gradients over the spectrum."


def table(panel: Panel) -> pd.DataFrame | None:
    """The eigenvalues of G at the final model, and how much of the test gradients lies along each.

    Returns:
        columns eigenvalue, share (of the squared length of the test gradients, averaged over test instances),
        damping_unit (the recommended damping); None if there is no final model yet.
    """
    params = finished(lambda: panel.params)
    if params is None:
        return None
    at, rows = Gradients(panel.task, params), torch.arange(panel.task.n_train)
    spectrum = Reduction(GaussNewton(at, rows))
    g = at.of_losses(at.test(torch.tensor(panel.settings.test)))
    share = (spectrum.into(g).square() / g.square().sum(1, keepdim=True)).mean(0)
    columns = {"eigenvalue": spectrum.eigenvalues.numpy(), "share": share.numpy()}
    return pd.DataFrame(columns).assign(damping_unit=recommended_damping(at, rows))


def draw(ax: Axes, table: pd.DataFrame, settings: Settings, per_epoch: int) -> None:
    """Share of a direction that is kept, against its eigenvalue."""
    eta, epochs = settings.further.learning_rate, settings.further.epochs
    sigma = np.geomspace(1e-6, table.eigenvalue.max() * 1.2, 400)
    edges = np.geomspace(sigma[0], sigma[-1], 40)
    heights, _ = np.histogram(table.eigenvalue, edges, weights=table.share)
    ax.bar(edges[:-1], heights / max(heights.max(), 1e-300) * 0.35, np.diff(edges), align="edge", **BARS)
    ax.axhline(1, **GRAD_DOT)
    for horizon, look in zip((1, max(epochs // 10, 1), epochs), HORIZONS, strict=True):
        T = horizon * per_epoch
        ax.plot(sigma, kept(eta * sigma, T), **look)
        ax.plot(sigma, 1 / (1 + eta * T * sigma), **{**DAMPED, "color": look["color"]})
    damping = max(settings.damping_multiples) * table.damping_unit.iloc[0]
    ax.plot(sigma, damping / (sigma + damping), **CG)
    ax.set(xscale="log", ylim=(0, 1.05), xlim=(sigma[0], sigma[-1]), xlabel=r"eigenvalue $\sigma$ of $G$")


def legend() -> list[Artist]:
    """The entries of the legend."""
    return [*(Line2D([], [], **look) for look in (GRAD_DOT, *HORIZONS, DAMPED, CG)), Patch(**BARS)]


def kept(moved: np.ndarray, steps: int) -> np.ndarray:
    """(1 - (1 - ησ)^T)/(ησT) for the given ησ."""
    return -np.expm1(steps * np.log1p(-np.minimum(moved, 1 - 1e-12))) / (moved * steps)
