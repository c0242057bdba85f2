"""The models that the paper attributes."""

from __future__ import annotations

import torch
from torch import nn


def mlp(n_inputs: int, n_outputs: int, *, width: int = 128, seed: int = 0) -> nn.Sequential:
    """The paper's tabular model: two hidden layers of ReLU units, PyTorch's default initialisation from `seed`.

    The caller's random state is left untouched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(n_inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_outputs)
        )
