"""Second derivatives that can be trusted: kernels that have them, and a check against difference quotients.

PyTorch derives gradients once more without a word where a rule for that is wrong or incomplete. So a run compares its
first Hessian-vector product with what gradients at two nearby places say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import checks
from ..devices import ONE_THREAD, strict_arithmetic
from ..tasks import Params

if TYPE_CHECKING:
    from .differentiable_run import DifferentiableRun

ROWS = 8  # instances that the comparison takes
STEP = 2.5e-8  # of the quotients, in units of the parameters' size: few kinks lie so near, and float64 resolves it
SHORTER = 1 / 256  # of it: for those that must agree
CONVERGED = 3e-3  # relative difference of quotients that are the same derivative
TOLERANCE = 2e-2  # of the norm of one parameter tensor's product: wrong rules miss by more
ROUNDING = 1e3 * torch.finfo(torch.float64).eps  # of gradients, relative to the largest entry


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Inside, one thread alone takes second or forward derivatives, which threads at the same time would get wrong.

    Attention is computed by elementary operations there: its fused kernels have first derivatives only.
    """
    with ONE_THREAD:
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def check_product(
    name: str, params: Params, gradient: Callable[[Params], Params], product: Callable[[Params], Params]
) -> None:
    """Raises ValueError if a Hessian-vector product is not the derivative of the gradient.

    Quotients are taken along one random direction, to both sides and with two steps. Where they differ, a kink lies
    near (a jump J of the gradient leaves J/ε in a quotient, very different for two steps; a jump of the second
    derivative leaves other values on the two sides), or the gradient is random, or rounded to float32 inside the model
    (then it does not follow short steps at all). Such entries are not judged, so that they raise no false alarm.

    Args:
        name: of the task.
        params: in float64.
        gradient: at some parameters.
        product: of the Hessian at `params` with a direction, computed as the run does.
    """
    generator = torch.Generator().manual_seed(0)
    typical = _rms(torch.cat([p.flatten() for p in params.values()])) or 1.0
    along = {
        k: torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) * (_rms(p) or typical)
        for k, p in params.items()
    }
    with second_derivative_of(name):
        found = product(along)
    steps = (0.0, STEP, -STEP, SHORTER * STEP, -SHORTER * STEP)
    here, *beside = (gradient({k: p + step * along[k] for k, p in params.items()}) for step in steps)
    if not all(g.isfinite().all() for g in here.values()):
        raise ValueError(f"Task '{name}': the gradient of the loss is not finite at these parameters; nothing follows.")
    noise = ROUNDING * max(g.abs().max().item() for g in here.values()) / STEP
    for k, value in found.items():
        ahead, behind, near_ahead, near_behind = (g[k] - here[k] for g in beside)
        quotient = (ahead - behind) / (2 * STEP)
        near = (near_ahead - near_behind) / (2 * SHORTER * STEP)
        apart = torch.maximum((ahead + behind).abs() / STEP, (quotient - near).abs())
        judged = (apart <= CONVERGED * quotient.abs()) & (quotient != 0)
        error, expected = (value - quotient)[judged].norm(), quotient[judged].norm()
        if not error <= TOLERANCE * expected + noise * judged.sum().sqrt():  # also for NaN
            raise ValueError(
                f"Task '{name}': PyTorch's second derivative of the loss is wrong for parameter {k!r} (by "
                f"{error / expected:.1%} of a difference quotient of gradients), so that nothing exact can be computed "
                "from it; write the layer that holds this parameter, or those behind it, in elementary operations."
            )


def check_run(run: DifferentiableRun, product: Callable[..., Params]) -> None:
    """`check_product` for the first instances of a run that is in float64.

    Args:
        product: `product(batch, weights, direction)`, with the Hessian of the weighted loss, as the run computes it.
    """
    rows = torch.arange(min(ROWS, len(run.train[1])))
    batch, weights = run.batch(rows), run.weights(torch.full(rows.shape, 1 / len(rows)))

    def paired(function: Callable[[Params], Params]) -> Callable[[Params], Params]:
        def with_the_same_masks(p: Params) -> Params:
            with run.ensemble.masks(0, 0):
                return function(p)

        return with_the_same_masks

    with strict_arithmetic(run.device):
        check_product(
            run.name,
            run.params,
            paired(lambda p: run.gradients(p, batch, weights)),
            paired(lambda along: product(batch, weights, along)),
        )


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


@contextlib.contextmanager
def second_derivative_of(name: str, what: str = "second derivative") -> Iterator[None]:
    """Inside, what PyTorch says where it has no rule for a derivative becomes a ValueError about this task."""
    try:
        yield
    except RuntimeError as error:  # also NotImplementedError
        if not any(words in str(error) for words in ("forward AD", "forward mode AD", "derivative for", "vmap: ")):
            raise  # the model's or the loss's own
        raise ValueError(
            f"Task '{name}': PyTorch has no {what} of the model or the loss ({checks.reason(error)}); write "
            "the layer or loss that this names in elementary operations, or take another."
        ) from error
