"""Curvature of the mean training loss: the Gauss-Newton matrix as G = AᵀA/n, its Gram matrix AAᵀ, and damping.

For instance i with Jacobian Jᵢ [C, P] of the outputs and second derivative Hᵢ = LᵢLᵢᵀ [C, C] of the loss in the
outputs, the rows of A are Lᵢᵀ Jᵢ. Directions in which the loss is flat are left out: two classes leave one row per
instance (the difference of the logits), C classes leave C - 1, squared error leaves one per output.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..devices import eigh, free_memory
from .gradients import Gradients

ROUNDOFF = 1e-12  # of eigenvalues
SMALLER = (1.0, 0.1, 0.01, 0.001)  # of outputs of size one: a loss may have a temperature
TOGETHER = 2**22  # numbers in second derivatives of losses that are computed in one call
HOLD_BYTES = 6 * 2**30  # up to this size A is kept in the CPU's memory; beyond it, computed anew for every product


class GaussNewton:
    """The generalised Gauss-Newton matrix of the mean loss of some training instances, as an operator.

    Args:
        at: the model at its parameters.
        rows: the training instances that define the curvature.
        hold: whether to keep A; by default up to `HOLD_BYTES` on the CPU, and half of the free memory on a GPU.
        scale: what every column of A is multiplied by [P]; then G stands for diag(scale) G diag(scale).
    """

    def __init__(self, at: Gradients, rows: Tensor, *, hold: bool | None = None, scale: Tensor | None = None) -> None:
        self.at, self.rows, self.n, self.scale = at, rows, len(rows), scale
        check_curved(at, rows)
        self.rank = max(output_factors(at, at.train(piece)).shape[1] for piece in rows.split(4096))  # rows of A each
        size = self.n * self.rank * at.n_params * torch.finfo(at.dtype).bits // 8
        self.held: Tensor | None = None
        if size <= largest_held(at.device) if hold is None else hold:
            self.held = torch.empty(self.n * self.rank, at.n_params, dtype=at.dtype, device=at.device)
            start = 0
            for block in self._computed():
                self.held[start : start + len(block)] = block
                start += len(block)

    @property
    def reducible(self) -> bool:
        """Whether its range is so much smaller than the parameters that a `Reduction` pays."""
        return self.held is not None and self.n * self.rank * 4 <= self.at.n_params

    @property
    def at_once(self) -> int | None:
        """How many instances' rows to hold at once in a random batch; None: all of them."""
        on_gpu = self.held is None and self.at.device.type == "cuda"
        return self.at.block_size(self.rank) if on_gpu else None

    def _computed(self) -> Iterator[Tensor]:
        for piece in self.rows.split(self.at.block_size(self.rank)):
            yield self.factor(piece)

    def blocks(self) -> Iterator[Tensor]:
        """A, all at once if it is held, else a few instances at a time: [b * rank, P]."""
        yield from self._computed() if self.held is None else [self.held]

    def columns(self) -> Iterator[slice]:
        """Parameters, a few at a time: what is held is converted piece by piece, and never held twice."""
        width = self.at.block_size() * self.at.n_params // (self.n * self.rank) + 1
        yield from (slice(start, start + width) for start in range(0, self.at.n_params, width))

    def factor(self, rows: Tensor) -> Tensor:
        """The rows of A that belong to the given training instances: [len(rows) * rank, P]."""
        instances = self.at.train(rows)
        directions = output_factors(self.at, instances, rank=self.rank)
        factor = self.at.of_outputs(instances[0], directions).flatten(0, 1)
        return factor if self.scale is None else factor * self.scale

    def factor_at(self, positions: Tensor) -> Tensor:
        """The rows of A at positions in `rows` (with repetition, for random batches): [len(positions) * rank, P]."""
        if self.held is None:
            return self.factor(self.rows[positions])
        return self.held.view(self.n, self.rank, -1)[positions].flatten(0, 1)

    def products(self, vectors: Tensor) -> Tensor:
        """G times each vector: [k, P] -> [k, P]."""
        result = torch.zeros_like(vectors)
        for block in self.blocks():
            result += (vectors @ block.T) @ block
        return result / self.n

    def overlaps(self, vectors: Tensor, dtype: torch.dtype) -> Tensor:
        """A times each vector, worked out in a precision: [k, P] -> [k, n * rank]."""
        if self.held is None:
            vectors = vectors.to(dtype)
            return torch.cat([vectors @ block.to(dtype).T for block in self._computed()], 1)
        return sum(vectors[:, few].to(dtype) @ self.held[:, few].to(dtype).T for few in self.columns())

    def combine(self, weights: Tensor) -> Tensor:
        """Aᵀ times each row of weights, worked out in their precision: [k, n * rank] -> [k, P], in that of A."""
        result = torch.zeros(len(weights), self.at.n_params, dtype=self.at.dtype, device=self.at.device)
        if self.held is not None:
            for few in self.columns():
                result[:, few] = weights @ self.held[:, few].to(weights.dtype)
            return result
        exact, start = result.to(weights.dtype), 0
        for block in self._computed():
            exact += weights[:, start : start + len(block)] @ block.to(weights.dtype)
            start += len(block)
        return exact.to(self.at.dtype)

    def gram(self, dtype: torch.dtype) -> Tensor:
        """AAᵀ worked out in a precision, [n * rank, n * rank]; its eigenvalues over n are the non-zero ones of G."""
        if self.held is None:
            return torch.cat([self.overlaps(left, dtype) for left in self._computed()])
        converted = (self.held[:, few].to(dtype) for few in self.columns())
        return sum(piece @ piece.T for piece in converted)

    def dense(self) -> Tensor:
        """G itself, [P, P]: for small models."""
        result = torch.zeros(self.at.n_params, self.at.n_params, dtype=self.at.dtype, device=self.at.device)
        for block in self.blocks():
            result += block.T @ block
        return result / self.n


def largest_held(device: torch.device) -> int:
    """How many bytes A may take to be kept in a device's memory."""
    return free_memory(device) // 2 if device.type == "cuda" else HOLD_BYTES


class Reduction:
    """The Gauss-Newton matrix in an orthonormal basis Q of its range: n * rank coordinates in place of P.

    G and every batch version of it act inside the range only, so that any function of them does, too:
    f(G) v = Q f(QᵀGQ) Qᵀv + f(0) (v - QQᵀv). With AAᵀ = U S Uᵀ the basis is Qᵀ = S^(-1/2) Uᵀ A.

    The Gram matrix squares the condition of A: in float32 its small eigenvalues, which the inverse of G enlarges most,
    would be lost. So Q is worked out, and applied, in float64; what comes out has the precision of G.

    Attributes:
        eigenvalues: of G, those that are not zero, [q].
        factor: A Q, [n * rank, q]; QᵀGQ = factorᵀ factor / n.
    """

    def __init__(self, G: GaussNewton) -> None:
        self.G, self.dtype = G, G.at.dtype
        values, vectors = eigh(G.gram(torch.float64))
        kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
        self.vectors, self.roots = vectors[:, kept], values[kept].sqrt()
        self.eigenvalues = (values[kept] / G.n).to(self.dtype)
        self.factor = (self.vectors * self.roots).to(self.dtype)

    def products(self, coordinates: Tensor) -> Tensor:
        """QᵀGQ times each row: [k, q] -> [k, q]; diagonal in this basis."""
        return coordinates * self.eigenvalues

    def into(self, vectors: Tensor) -> Tensor:
        """Qᵀv for every row v: [k, P] -> [k, q]."""
        return (self.G.overlaps(vectors, torch.float64) @ self.vectors / self.roots).to(self.dtype)

    def out_of(self, coordinates: Tensor) -> Tensor:
        """Q times every row of coordinates: [k, q] -> [k, P]."""
        return self.G.combine(coordinates.double() / self.roots @ self.vectors.T)


def check_curved(at: Gradients, rows: Tensor) -> None:
    """Raises ValueError if the loss of every one of these training instances is linear in the model's outputs.

    All curvature then lies in the model, where the Gauss-Newton matrix has none: it is zero, and what is made of it is
    Grad-Dot at best. Looks only as far as the first instances with a curved loss.
    """
    for piece in rows.split(256):
        inputs, targets = at.train(piece)
        outputs = at.outputs(inputs).detach().double()
        if any(at.loss_hessians(o, targets).any() for o in (outputs, torch.zeros_like(outputs))):
            return
    raise ValueError(
        f"The loss of task '{at.task.name}' is linear in the model's outputs, as an absolute error is, so that the "
        "Gauss-Newton matrix is zero; expected a curved one, such as a squared error, or cross-entropy; grad_dot, "
        "grad_cos, datainf and trak do without that matrix."
    )


def output_factors(at: Gradients, instances: tuple, rank: int | None = None) -> Tensor:
    """Lᵀ of every instance, [n, rank, C], where L Lᵀ is the second derivative of its loss in its outputs.

    Raises:
        ValueError: the loss is not convex in the outputs, so that there is no Gauss-Newton matrix.
    """
    with torch.no_grad():
        outputs = at.outputs(instances[0]).double()  # these matrices are small, and saturation leaves few digits
        values, vectors = torch.linalg.eigh(at.loss_hessians(outputs, instances[1]))  # ascending
    if rank is None or (values < -ROUNDOFF * trace_norm(values)).any():
        others, floor = curvature_elsewhere(at, outputs, instances[1])
        if (values < -ROUNDOFF * torch.maximum(trace_norm(values), floor)).any():
            raise ValueError(f"The loss of task '{at.task.name}' is not convex in the outputs: no Gauss-Newton matrix.")
        if rank is None:
            kept = (v > ROUNDOFF * torch.maximum(trace_norm(v), floor) for v in (values, *others))
            rank = max(int(k.sum(1).max()) for k in kept) or 1
    return (vectors * values.clamp(min=0).sqrt()[:, None]).mT[:, -rank:].to(at.dtype)


def curvature_elsewhere(at: Gradients, outputs: Tensor, targets: Tensor) -> tuple[list[Tensor], Tensor]:
    """Sizes [n, C] of the eigenvalues of the losses' second derivatives at outputs of zero and small ones, and the
    scale of their rounding errors [n, 1].

    A saturated softmax has tiny curvature but rounding errors of the size of probabilities: those belong to its
    curvature at small outputs. Some losses, of probabilities or rates, have a pole at zero, which is no scale.
    """
    small, found = outputs / outputs.abs().amax(1, keepdim=True).clamp(min=1), []
    places = torch.stack([torch.zeros_like(outputs), *(small * s for s in SMALLER)])
    with torch.no_grad():
        for some in places.split(max(TOGETHER // (outputs.numel() * outputs.shape[1]), 1)):
            hessians = at.loss_hessians(some.flatten(0, 1), torch.cat([targets] * len(some)))
            values = torch.linalg.eigvalsh(hessians.nan_to_num(0, 0, 0)).abs()  # some losses have none there
            found += values.unflatten(0, (len(some), -1))
    zero, *nearby = map(trace_norm, found)
    return found, torch.minimum(zero, torch.stack(nearby).amax(0))


def trace_norm(values: Tensor) -> Tensor:
    return values.abs().sum(1, keepdim=True).clamp(min=1e-300)


def recommended_damping(at: Gradients, rows: Tensor) -> float:
    """The mean squared entry of the loss gradients of the given training instances (the paper's unit of damping)."""
    return sum(g.square().sum().item() for _, g in at.blocks(rows)) / (len(rows) * at.n_params)


def layer_damping(at: Gradients, rows: Tensor) -> dict[str, float]:
    """`recommended_damping` for every parameter tensor on its own."""
    total = dict.fromkeys(at.names, 0.0)
    for _, g in at.blocks(rows):
        for name, columns in at.columns().items():
            total[name] += g[:, columns].square().sum().item()
    return {name: total[name] / (len(rows) * size) for name, size in zip(at.names, at.sizes, strict=True)}
