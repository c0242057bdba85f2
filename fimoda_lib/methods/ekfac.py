"""EK-FAC: the operator is (G + λI)⁻¹, layer by layer, with G diagonal in the eigenbasis of a Kronecker product.

A layer maps every input row a (with a 1 appended if it has a bias) to an output row Wa; s is the pseudo-gradient with
respect to that output. With A the mean of aaᵀ and S the mean of ssᵀ, K-FAC takes S ⊗ A for G. EK-FAC keeps only its
eigenvectors: the eigenvalues are the measured mean squares of the per-instance pseudo-gradients along them.
"""

from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from ..derivatives.curvature import check_curved, output_factors
from ..derivatives.gradients import Gradients
from ..devices import eigh
from ..tasks import Params, Task, cross_entropy
from .base import Report, apply_operator, method, resolve_damping
from .ekfac_moments import in_blocks, joined, scaled, second_moments

HEURISTIC = 0.1  # recommended damping of a layer over its mean eigenvalue (Grosse et al. 2023)


@method(label="EK-FAC", family="influence function", reference="Grosse et al. 2023; George et al. 2018")
def ekfac(
    task: Task,
    params: Params,
    *,
    train: Tensor,
    test: Tensor,
    curvature: Tensor | None = None,
    damping: float | str | dict[str, float] = "recommended",
    multiple: float = 1.0,
    fisher: str = "true",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Report]:
    """Damped influence with the eigenvalue-corrected Kronecker factors of linear and convolutional layers.

    Padding is left out of the factors where the inputs are a dict with a boolean "mask" [n, L], true at tokens.

    Args:
        damping: λ by value, the same for every layer or layer name -> λ; or "recommended", 0.1 times the mean
            eigenvalue of each layer.
        multiple: factor on `damping`.
        fisher: "true" draws the pseudo-gradients from the model (their covariance is the Gauss-Newton matrix);
            "empirical" takes the gradients of the training losses.
        seed: of that draw, which belongs to the instance: other curvature instances do not change it.

    Returns:
        scores [n_test, n_train] (divided by n: a loss change), and a report: damping of every layer, and the parameters
        that are `not_covered`, because no such layer holds them, or no gradient reaches it: they contribute nothing to
        the scores.

    Raises:
        ValueError: no layer can be covered, a convolution has groups, or a damping is not positive.
    """
    at = Gradients(task, params, dtype=dtype)
    factors = EkfacFactors(at, curvature, fisher=fisher, seed=seed)
    layer_damping = factors.damping(damping, multiple)
    denominator = factors.eigenvalues + factors.spread(layer_damping)

    def P(g: Tensor) -> Tensor:
        return factors.from_eigenbasis(factors.to_eigenbasis(g) / denominator)

    return apply_operator(at, P, train, test), {"damping": layer_damping, "not_covered": factors.not_covered}


@dataclass(frozen=True)
class EkfacLayer:
    """The eigenbasis of one layer, and where its parameters lie in a flat gradient.

    Args:
        Q_S: eigenvectors [out, out] on the side of the outputs.
        Q_A: eigenvectors [in (+ 1), in (+ 1)] on the side of the inputs; the last input is the bias, if there is one.
        eigenvalues: [out, in (+ 1)].
    """

    weight: slice
    bias: slice | None
    Q_S: Tensor
    Q_A: Tensor
    eigenvalues: Tensor

    def rotate(self, flat: Tensor) -> Tensor:
        """Flat gradients [k, P] to this layer's part in the eigenbasis, [k, out, in (+ 1)]."""
        matrix = flat[:, self.weight].unflatten(1, (len(self.Q_S), -1))
        matrix = matrix @ self.Q_A[: matrix.shape[2]]
        if self.bias is not None:  # the last column of the matrix, without a copy of all the others
            matrix.addcmul_(flat[:, self.bias].unsqueeze(2), self.Q_A[-1])
        return self.Q_S.T @ matrix

    def rotate_back(self, rotated: Tensor, flat: Tensor) -> None:
        """The inverse of `rotate`, written into this layer's part of `flat` [k, P]."""
        matrix = self.Q_S @ rotated @ self.Q_A.T
        if self.bias is not None:
            flat[:, self.bias] = matrix[:, :, -1]
            matrix = matrix[:, :, :-1]
        flat[:, self.weight] = matrix.flatten(1)


class EkfacFactors:
    """The eigenbasis of every layer that can be covered: an orthogonal change of coordinates for flat gradients.

    `layers` holds it by layer name; `not_covered` names the parameters that no layer covers.

    Args:
        rows: the training instances that define the curvature.
        scale: factors on the entries of gradients [P], as an optimiser may have. For the eigenvectors, those of a layer
            count as products of means over inputs and over outputs; the eigenvalues are measured with all of them.
    """

    def __init__(
        self, at: Gradients, rows: Tensor, *, fisher: str = "true", seed: int = 0, scale: Tensor | None = None
    ) -> None:
        self.at = at
        directions = pseudo_gradients(at, rows, fisher, seed)  # one draw for the factors and for the eigenvalues
        columns = at.columns()
        self.layers: dict[str, EkfacLayer] = {}
        for name, (A, S) in second_moments(at, _coverable(at), rows, directions).items():
            where = [columns.get(joined(name, kind)) for kind in ("weight", "bias")]
            if scale is not None:
                A, S = scaled(A, S, scale, *where)
            Q_A, Q_S = (eigh(moment.double())[1].to(at.dtype) for moment in (A, S))
            self.layers[name] = EkfacLayer(*where, Q_S, Q_A, eigenvalues=Q_S.new_zeros(len(S), len(A)))
        if not self.layers:
            raise ValueError(
                f"EK-FAC covers nn.Linear and nn.Conv2d layers with weights of their own, and task "
                f"'{at.task.name}' has none that trains; choose another method."
            )
        for piece, direction in in_blocks(at, rows, directions):
            g = at.of_outputs(at.train(piece)[0], direction.unsqueeze(1)).squeeze(1)
            g = g if scale is None else g * scale
            for layer in self.layers.values():
                layer.eigenvalues.add_(layer.rotate(g).square_().sum(0), alpha=1 / len(rows))

        # A layer that no gradient reaches has no curvature to divide by, and adds nothing.
        self.layers = {name: x for name, x in self.layers.items() if x.eigenvalues.any()} or self.layers
        covered = {joined(name, kind) for name in self.layers for kind in ("weight", "bias")}
        self.not_covered = [name for name in at.names if name not in covered]

    @property
    def eigenvalues(self) -> Tensor:
        """Of all layers, in the order of `to_eigenbasis`: [covered]."""
        return torch.cat([layer.eigenvalues.flatten() for layer in self.layers.values()])

    def to_eigenbasis(self, flat: Tensor) -> Tensor:
        """Flat gradients [k, P] in the eigenbasis of all layers, [k, covered]."""
        return torch.cat([layer.rotate(flat).flatten(1) for layer in self.layers.values()], 1)

    def from_eigenbasis(self, rotated: Tensor) -> Tensor:
        """[k, covered] back to flat gradients [k, P], with zeros for the parameters that are not covered."""
        flat = rotated.new_zeros(len(rotated), self.at.n_params)
        pieces = rotated.split([layer.eigenvalues.numel() for layer in self.layers.values()], 1)
        for layer, piece in zip(self.layers.values(), pieces, strict=True):
            layer.rotate_back(piece.unflatten(1, layer.eigenvalues.shape), flat)
        return flat

    def spread(self, per_layer: dict[str, float]) -> Tensor:
        """One number per layer to one per coordinate of the eigenbasis, [covered]."""
        return torch.cat([torch.full_like(x.eigenvalues, per_layer[name]).flatten() for name, x in self.layers.items()])

    def damping(self, damping: float | str | dict[str, float], multiple: float = 1.0) -> dict[str, float]:
        """Layer name -> λ by value."""
        if isinstance(damping, dict) and set(damping) != set(self.layers):
            raise ValueError(f"damping: got layers {checks.shown(list(damping))}, expected {', '.join(self.layers)}.")
        return {
            name: resolve_damping(
                damping[name] if isinstance(damping, dict) else damping,
                multiple,
                lambda mean=layer.eigenvalues.mean(): HEURISTIC * mean.item(),
            )
            for name, layer in self.layers.items()
        }


def pseudo_gradients(at: Gradients, rows: Tensor, fisher: str = "true", seed: int = 0) -> Tensor:
    """A gradient with respect to the outputs for every curvature instance, [n, C].

    The true ones have mean zero and the second derivative H of the loss in the outputs as covariance: p - onehot(label
    drawn from p) for cross-entropy; Lε with LLᵀ = H for any other loss (squared error: the target f + N(0, 1/2)).
    """
    checks.choice("fisher", fisher, ("true", "empirical"), "'true' or 'empirical'")
    checks.whole("seed", seed, at_least=0)
    targets = at.task.train[1]  # an ignored label, -100, has no gradient; probabilities need not sum to 1
    labels = at.task.loss is cross_entropy and not targets.is_floating_point() and bool((targets >= 0).all())
    if not labels and fisher == "true":
        check_curved(at, rows)
    draw, size = (torch.rand, 1) if labels else (torch.randn, at.outputs(at.train(rows[:1])[0]).numel())
    # Drawn for all training instances in float64: neither blocks, nor other rows, nor the precision change a draw.
    noise = draw(at.task.n_train, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def one_block(piece: Tensor) -> Tensor:
        inputs, targets = at.train(piece)
        outputs = at.outputs(inputs).detach()
        if fisher == "empirical":
            return at.loss_slopes(outputs, targets)
        drawn = noise[piece].to(at.device)
        if labels:
            p = outputs.softmax(1)
            label = (p.double().cumsum(1) < drawn).sum(1).clamp(max=p.shape[1] - 1)
            return p - F.one_hot(label, p.shape[1])
        return (drawn.to(at.dtype).unsqueeze(1) @ output_factors(at, (inputs, targets), rank=size)).squeeze(1)

    return torch.cat([one_block(piece) for (piece,) in in_blocks(at, rows)])


def _coverable(at: Gradients) -> dict[str, nn.Module]:
    """The layers of the working copy whose weight trains and belongs to them alone."""
    owners = Counter(id(p) for _, p in at.model.named_parameters(remove_duplicate=False))
    layers = {}
    for name, module in at.model.named_modules():
        # A subclass with a forward pass of its own (an adapter, say) need not be a linear map with this weight.
        if type(module).forward not in (nn.Linear.forward, nn.Conv2d.forward) or joined(name, "weight") not in at.names:
            continue
        if any(owners[id(p)] > 1 for p in module.parameters()):
            continue
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            raise ValueError(f"EK-FAC: the convolution '{name}' has {module.groups} groups, expected 1; freeze it.")
        layers[name] = module
    return layers
