"""Eigendecompositions of the Gauss-Newton matrix G behind one interface, for functions of G.

A spectrum holds q orthonormal directions of parameter space and an eigenvalue for each. Outside their span G counts as
zero: exactly true of the Gram matrix's, which spans the range of G; of the others, true up to what they left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ..devices import eigh, free_memory
from .curvature import GaussNewton, Reduction

GRAM_ROWS = 3_000  # up to so many rows of A its Gram matrix is the fastest
GRAM_LIMIT = 12_000  # and beyond so many it does not fit
KRYLOV_PARAMETERS = 5_000_000  # beyond so many, a basis of parameter space does not fit
BLOCK = 16  # vectors multiplied by G at once
HELD = 6  # vectors for each direction of a Krylov basis, while it is built


class Spectrum(Protocol):
    """Orthonormal directions and their eigenvalues [q]."""

    eigenvalues: Tensor

    def into(self, vectors: Tensor) -> Tensor:
        """[k, P] -> coordinates [k, q]."""

    def out_of(self, coordinates: Tensor) -> Tensor:
        """Coordinates [k, q] -> [k, P]."""


class Dense:
    """All of G, where parameters are few."""

    def __init__(self, G: GaussNewton) -> None:
        self.eigenvalues, self.vectors = eigh(G.dense())

    def into(self, vectors: Tensor) -> Tensor:
        return vectors @ self.vectors

    def out_of(self, coordinates: Tensor) -> Tensor:
        return coordinates @ self.vectors.T


class Krylov:
    """The upper part of the spectrum, by block Lanczos with full reorthogonalisation in parameter space.

    Args:
        floor: eigenvalues above it are wanted; grows the basis until they have converged (their residuals are below
            `floor`) and the smallest one found lies below it.
        limit: largest number of directions.
    """

    def __init__(self, G: GaussNewton, floor: float, *, limit: int = 1024, seed: int = 0) -> None:
        at = G.at
        generator = torch.Generator().manual_seed(seed)
        limit = min(limit, at.n_params, G.n * G.rank)
        if free := free_memory(at.device):  # basis, images, and what their products take
            limit = max(min(limit, free // (HELD * at.n_params * torch.finfo(at.dtype).bits // 8)), 1)
        start = torch.randn(min(BLOCK, limit), at.n_params, generator=generator, dtype=torch.float64)
        # Directions outside the range of G would only dilute the basis.
        basis = orthonormal(G.products(start.to(at.dtype).to(at.device)))
        images = G.products(basis)
        self.converged = False
        with tqdm(total=limit, desc="eigenvalues", leave=False, disable=None) as bar:
            while True:
                values, vectors = eigh(basis @ images.T)
                residual = (vectors.T @ images - values[:, None] * (vectors.T @ basis)).norm(dim=1)
                complete = len(basis) >= min(at.n_params, G.n * G.rank)  # it spans all that G can reach
                self.converged = complete or bool((residual[values > floor] <= floor).all() and values[0] <= floor)
                bar.update(len(basis) - bar.n)
                if self.converged or len(basis) >= limit:
                    break
                fresh = orthonormal(images[-BLOCK:], against=basis)[: limit - len(basis)]
                if len(fresh) == 0:  # the basis spans the range of G
                    self.converged = True
                    break
                basis = torch.cat([basis, fresh])
                images = torch.cat([images, G.products(fresh)])
        kept = values > 0
        self.eigenvalues, self.basis = values[kept], (vectors.T @ basis)[kept]

    def into(self, vectors: Tensor) -> Tensor:
        return vectors @ self.basis.T

    def out_of(self, coordinates: Tensor) -> Tensor:
        return coordinates @ self.basis


def damped(
    spectrum: Spectrum, test: Tensor, inside_test: Tensor, train: Tensor, dampings: Sequence[float]
) -> Iterator[Tensor]:
    """g_zᵀ (G + λI)⁻¹ gᵢ for one λ after the other, [z, i] each: g_zᵀ gᵢ / λ, but for the part in the spectrum.

    Args:
        test, train: gradients [z, P], [i, P]; inside_test: `spectrum.into(test)`.
    """
    plain, inside = test @ train.T, spectrum.into(train)
    for damping in dampings:
        bent = 1 / (spectrum.eigenvalues + damping) - 1 / damping
        yield plain / damping + (inside_test * bent) @ inside.T


def orthonormal(vectors: Tensor, against: Tensor | None = None) -> Tensor:
    """An orthonormal basis [<= k, P] of the rows, and orthogonal to the orthonormal rows of `against`."""
    size = vectors.norm(dim=1).max()
    for _ in range(2):  # once leaves rounding errors of the size of what was removed
        if against is not None:
            vectors = vectors - (vectors @ against.T) @ against
        Q, R = torch.linalg.qr(vectors.T)
        U, lengths, _ = torch.linalg.svd(R)  # columns of Q alone do not span the rest where one row depends on others
        kept = lengths > 1e3 * torch.finfo(vectors.dtype).eps * size
        vectors, size = (Q @ U).T[kept], vectors.new_tensor(1.0)
    return vectors


def choose_backend(G_rows: int, n_params: int) -> str:
    """ "gram", "krylov" or "ekfac", by size."""
    if G_rows <= GRAM_ROWS:
        return "gram"
    return "krylov" if n_params <= KRYLOV_PARAMETERS else "ekfac"


def spectrum_of(G: GaussNewton, backend: str, floor: float) -> Spectrum:
    """The Gram matrix's or the Krylov spectrum of G; `floor` is the smallest eigenvalue that matters."""
    rows = G.n * G.rank
    if backend == "gram":
        if rows > GRAM_LIMIT:
            raise ValueError(f"backend: 'gram' needs a {rows} x {rows} matrix; take 'krylov' beyond {GRAM_LIMIT} rows.")
        return Reduction(G)
    found = Krylov(G, floor)
    if not found.converged:
        warnings.warn(
            f"LFT: {len(found.eigenvalues)} directions do not reach the smallest eigenvalue that matters ({floor:.3g}; "
            f"the last found is {found.eigenvalues[0]:.3g}); what is beyond counts as zero.",
            stacklevel=2,
        )
    return found
