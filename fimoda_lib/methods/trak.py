"""TRAK: the operator is R (RᵀΦᵀΦR + ρI)⁻¹ Rᵀ, with Φ the gradients of a model output and R a random projection.

With l'ᵢ the derivative of the loss in that output, gᵢ = φᵢ l'ᵢ is the gradient of the loss. So TRAK's score
l'_z φ_zᵀR (RᵀΦᵀΦR)⁻¹ Rᵀφᵢ l'ᵢ is g_zᵀ P gᵢ, like every other method's; in classification it carries the factor
(1 - p_z)(1 - pᵢ), which is Q in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .. import checks
from ..derivatives.curvature import output_factors
from ..derivatives.gradients import Gradients
from ..devices import eigh
from ..tasks import Instances, Params, Task, cross_entropy
from .base import Report, apply_operator, method

PROJECTIONS = ("rademacher", "gaussian", "identity")
CHUNK = 2**22  # entries of R that are generated at a time
DIMENSION = 512  # by default, where there are enough instances


@method(label="TRAK", family="projection", reference="Park et al. 2023")
def trak(
    task: Task,
    params: Params,
    *,
    train: Tensor,
    test: Tensor,
    curvature: Tensor | None = None,
    dimension: int | None = None,
    projection: str = "rademacher",
    n_projections: int = 1,
    ridge: float = 0.0,
    weighted: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Report]:
    """Influence in the kernel of randomly projected gradients of a model output.

    The output is the margin log(p_y / (1 - p_y)) in classification. Otherwise it is the model's output itself; if there
    are several, each gives a row of Φ of its own.

    Args:
        curvature: the instances whose gradients are the rows of Φ.
        dimension: columns of R; by default 512, or half the number of rows of Φ if that is less (with more columns than
            rows the kernel has no inverse unless `ridge` is positive).
        projection: "rademacher" (random signs), "gaussian", or "identity" (none: R = I, which holds Φ [n, P]).
        n_projections: independent projections whose scores are averaged, as TRAK averages over models.
        ridge: ρ by value; R is scaled to keep squared lengths on average, so that ρ means the same in any dimension.
        weighted: whether the rows of Φ carry the square root of the loss's second derivative in the output: p(1 - p)
            for cross-entropy, 2 for squared error. The paper leaves these weights out. With them, R = I and ρ = nλ, n
            times the score is that of (G + λI)⁻¹, if there are two classes or the outputs are not classes.

    Returns:
        scores [n_test, n_train], positive = helpful, on no particular scale if not weighted (half of it is the loss
        change for squared error), and a report: dimension, and the kernel's condition number for each projection.

    Raises:
        ValueError: the kernel is singular, or a hyper-parameter cannot be right.
    """
    ridge = checks.number("ridge", ridge, "a number that is not negative", zero=True)
    checks.choice("weighted", weighted, (True, False))
    checks.whole("seed", seed, at_least=0)
    at = Gradients(task, params, dtype=dtype)
    n_rows = len(curvature) * output_directions(at, at.train(curvature[:1]), weighted).shape[1]
    dimension = _check(at, n_rows, dimension, projection, n_projections, ridge)
    if projection == "identity":
        projections = [Identity()]
    else:
        projections = [Projection(projection, at.n_params, dimension, (seed, k), at) for k in range(n_projections)]
    kernels = [Kernel(Phi, ridge) for Phi in features(at, curvature, projections, weighted)]

    def P(g: Tensor) -> Tensor:
        return sum(R.back(kernel.solve(R(g))) for R, kernel in zip(projections, kernels, strict=True)) / len(kernels)

    return apply_operator(at, P, train, test), {"dimension": dimension, "condition": [k.condition for k in kernels]}


def output_directions(at: Gradients, instances: Instances, weighted: bool = False) -> Tensor:
    """The gradient of TRAK's model output in the outputs of the model, [n, R, C], R rows of Φ for every instance."""
    inputs, targets = instances
    outputs = at.outputs(inputs).detach()
    n, C = outputs.shape
    if at.of_classes and targets.dim() == 1 and at.working.vector and C > 1:
        label = targets.long().unsqueeze(1)
        others = outputs.scatter(1, label, -torch.inf)
        direction = torch.zeros_like(outputs).scatter(1, label, 1) - others.softmax(1)
        if weighted:
            margin = outputs.gather(1, label).squeeze(1) - others.logsumexp(1)  # precise however close p is to 0 or 1
            curvature = margin.sigmoid() * (-margin).sigmoid()
            if at.task.loss is not cross_entropy:  # exact for multiples of it, and for any loss of two classes
                precise = outputs.double()  # confident models leave few digits
                own, p = at.loss_hessians(precise, targets).diagonal(dim1=1, dim2=2).sum(1), precise.softmax(1)
                curvature *= (own / (p * (1 - p)).sum(1)).nan_to_num(1.0, 1.0).clamp(min=0).to(at.dtype)
            direction *= curvature.sqrt().unsqueeze(1)
        return direction.unsqueeze(1)
    if weighted:
        return output_factors(at, instances, rank=C)
    return torch.eye(C, dtype=at.dtype, device=at.device).expand(n, C, C)


def features(at: Gradients, rows: Tensor, projections: list, weighted: bool) -> list[Tensor]:
    """ΦR for each projection, [n * R, dimension]."""
    per_instance = output_directions(at, at.train(rows[:1]), weighted).shape[1]
    blocks = []
    for piece in rows.split(at.block_size(per_instance)):
        instances = at.train(piece)
        g = at.of_outputs(instances[0], output_directions(at, instances, weighted)).flatten(0, 1)
        blocks.append([R(g) for R in projections])
    return [torch.cat(parts) for parts in zip(*blocks, strict=True)]


class Identity:
    """No projection."""

    def __call__(self, g: Tensor) -> Tensor:
        return g

    def back(self, x: Tensor) -> Tensor:
        return x


class Projection:
    """A random matrix R [P, dimension] of independent entries with mean 0 and variance 1 / dimension, never held whole.

    It is generated in chunks of parameters, each from a random stream of its own, anew for every use: it depends on
    the seed, not on how many gradients are projected at a time nor on their precision.
    """

    def __init__(self, kind: str, n_params: int, dimension: int, seed: tuple[int, ...], at: Gradients) -> None:
        self.kind, self.n_params, self.dimension, self.seed, self.at = kind, n_params, dimension, seed, at

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """R, some parameters at a time: (which, [rows, dimension])."""
        size = max(CHUNK // self.dimension, 1)
        for start in range(0, self.n_params, size):
            stop = min(start + size, self.n_params)
            shape = (stop - start, self.dimension)
            stream = np.random.default_rng((*self.seed, start))
            if self.kind == "rademacher":
                bits = np.frombuffer(stream.bytes(-(-shape[0] * shape[1] // 8)), np.uint8)
                entries = unpacked(bits, shape[0] * shape[1], self.at.device).to(self.at.dtype) * 2 - 1
            else:
                entries = torch.from_numpy(stream.standard_normal(shape)).to(self.at.dtype).to(self.at.device)
            yield slice(start, stop), entries.reshape(shape) / self.dimension**0.5

    def __call__(self, g: Tensor) -> Tensor:
        """gR, [k, P] -> [k, dimension]."""
        return sum(g[:, which] @ R for which, R in self.chunks())

    def back(self, x: Tensor) -> Tensor:
        """xRᵀ, [k, dimension] -> [k, P]."""
        return torch.cat([x @ R.T for _, R in self.chunks()], 1)


def unpacked(bits: np.ndarray, count: int, device: torch.device) -> Tensor:
    """Bits as numbers 0 and 1 [count]; they go to a GPU as they are, an eighth of a byte each."""
    if device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bits, count=count))
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
    return ((torch.from_numpy(bits.copy()).to(device)[:, None] >> places) & 1).flatten()[:count]


class Kernel:
    """(ΦᵀΦ + ρI)⁻¹ for Φ [m, k], on the smaller side; in float64, because condition numbers of 1e8 are common.

    Attributes:
        condition: of ΦᵀΦ + ρI.

    Raises:
        ValueError: it is singular.
    """

    def __init__(self, Phi: Tensor, ridge: float) -> None:
        precision = torch.finfo(Phi.dtype).eps
        self.Phi, self.ridge = Phi.double(), ridge
        m, k = Phi.shape
        self.in_instances = m < k
        gram = self.Phi @ self.Phi.T if self.in_instances else self.Phi.T @ self.Phi
        values, self.vectors = eigh(gram)  # ascending
        self.values = values + ridge
        smallest, largest = ridge if self.in_instances else self.values[0].item(), self.values[-1].item()
        if not smallest > k * max(torch.finfo(torch.float64).eps, precision**2) * largest:
            raise ValueError(
                f"TRAK: the kernel of {m} rows in dimension {k} with ridge {ridge:g} is singular "
                f"(eigenvalues from {smallest:.2g} to {largest:.2g}); lower dimension or raise ridge."
            )
        self.condition = largest / smallest

    def solve(self, right: Tensor) -> Tensor:
        """[n_test, k] -> [n_test, k]."""
        x = right.double()
        if self.in_instances:  # Woodbury: (x - Φᵀ (ΦΦᵀ + ρI)⁻¹ Φ x) / ρ
            x = (x - (x @ self.Phi.T @ self.vectors / self.values) @ self.vectors.T @ self.Phi) / self.ridge
        else:
            x = (x @ self.vectors / self.values) @ self.vectors.T
        return x.to(right.dtype)


def _check(at: Gradients, n_rows: int, dimension: int | None, projection: str, n_projections: int, ridge: float) -> int:
    """The dimension by value, once all hyper-parameters are found to be possible."""
    checks.choice("projection", projection, PROJECTIONS)
    checks.whole("n_projections", n_projections)
    if dimension is not None:
        checks.whole("dimension", dimension, or_=", or None")
    if projection == "identity" and (dimension is not None or n_projections > 1):
        raise ValueError(
            "projection='identity' has the dimension of the parameters, and there is one of it: leave out "
            "dimension and n_projections."
        )
    if projection == "identity":
        dimension = at.n_params
    elif dimension is None:
        dimension = max(min(DIMENSION, n_rows // 2, at.n_params), 1)
    if dimension > n_rows and ridge == 0:
        raise ValueError(
            f"TRAK: dimension {dimension} exceeds the number of rows of the kernel, {n_rows}: "
            f"it has no inverse; lower dimension or raise ridge."
        )
    return dimension
