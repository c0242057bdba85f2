"""Eigendecompositions of G against a matrix whose eigenvalues are known."""

import functools
import importlib
import warnings

import numpy as np
import oracles
import pytest
import torch
from problems import tiny
from small_files import refusal
from torch import nn

from fimoda_lib.derivatives import spectra
from fimoda_lib.derivatives.curvature import GaussNewton, Reduction
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.derivatives.spectra import Krylov, choose_backend, orthonormal, spectrum_of
from fimoda_lib.tasks import Task, parameters_of, squared_error

ekfac_module = importlib.import_module("fimoda_lib.methods.ekfac")


def known(values, *, n=None, size=None, seed=0):
    """A linear model whose G = 2XᵀX/n has these eigenvalues, others 0; and its eigenvectors [len(values), P]."""
    values = torch.as_tensor(values, dtype=torch.float64)
    n, size = n or len(values), size or len(values)
    g = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(k, len(values), generator=g, dtype=torch.float64))[0] for k in (n, size))
    X = left * (values * n / 2).sqrt() @ right.T
    data = X, torch.zeros(n, 1, dtype=torch.float64)
    task = Task("known", nn.Linear(size, 1, bias=False).double(), squared_error, train=data, test=data)
    return GaussNewton(Gradients(task, parameters_of(task.model)), torch.arange(n)), right.T


def curvature_of(task, params):
    return GaussNewton(Gradients(task, params), torch.arange(task.n_train))


HALVES = [2.0**-k for k in range(60)]


SLOW = [0.9**k for k in range(120)]


@pytest.mark.parametrize(("n", "size"), [(120, 120), (120, 150), (150, 120)])
def test_krylov_finds_every_eigenvalue_above_the_floor(n, size):
    """More of them than are multiplied at once; residuals up to the floor may hide those that hardly exceed it."""
    G, vectors = known(SLOW, n=n, size=size)
    floor = 0.9**39.5
    found = Krylov(G, floor)
    assert found.converged and 40 < len(found.eigenvalues) < 120
    np.testing.assert_allclose(found.eigenvalues.flip(0)[:33], SLOW[:33], rtol=0, atol=floor / 2)
    np.testing.assert_allclose(found.eigenvalues.flip(0)[:10], SLOW[:10], rtol=1e-4)
    above = found.eigenvalues > floor
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(len(found.basis), dtype=torch.float64))
    residual = G.products(found.basis) - found.eigenvalues[:, None] * found.basis
    assert (residual.norm(dim=1)[above] <= floor).all()
    overlap = (found.basis.flip(0)[:10] * vectors[:10]).sum(1).abs()
    np.testing.assert_allclose(overlap, 1, rtol=1e-3)


def test_krylov_finds_equal_eigenvalues():
    values = [3.0] * 12 + [1.0] * 5 + [1e-3] * 40
    found = Krylov(known(values)[0], 0.1)
    assert found.converged
    np.testing.assert_allclose(found.eigenvalues[found.eigenvalues > 0.1], [1.0] * 5 + [3.0] * 12, rtol=1e-4)


def test_krylov_is_complete_where_nothing_lies_below_the_floor():
    """As many directions as parameters, or as rows of A, are all that there are."""
    for n, size in ((30, 20), (20, 30)):
        G, vectors = known(np.linspace(1, 2, 20), n=n, size=size)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            found = spectrum_of(G, "krylov", 1e-6)
        np.testing.assert_allclose(found.eigenvalues, np.linspace(1, 2, 20), rtol=1e-9)


def test_krylov_stops_where_the_range_ends():
    G, vectors = known([4.0, 2.0, 1.0, 0.5], n=30, size=30)
    found = Krylov(G, 1e-12)
    assert found.converged
    np.testing.assert_allclose(found.eigenvalues, [0.5, 1, 2, 4], rtol=1e-9)


def test_krylov_warns_where_the_limit_is_too_small(monkeypatch):
    G, _ = known(HALVES)
    assert not Krylov(G, 2.0**-30, limit=20).converged
    monkeypatch.setattr(spectra, "Krylov", functools.partial(Krylov, limit=20))
    with pytest.warns(UserWarning, match=r"LFT: 20 directions do not reach .* \(9.31e-10; the last found is"):
        found = spectrum_of(G, "krylov", 2.0**-30)
    assert len(found.eigenvalues) == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        spectrum_of(G, "krylov", 0.3)


def test_krylov_takes_no_more_directions_than_memory_holds(monkeypatch):
    G, _ = known(HALVES)
    monkeypatch.setattr(spectra, "free_memory", lambda device: spectra.HELD * 8 * G.at.n_params * 20)
    found = Krylov(G, 2.0**-30)
    assert len(found.eigenvalues) <= 20 and not found.converged


def test_krylov_does_not_depend_on_the_seed():
    G, _ = known(HALVES)
    one, two = (Krylov(G, 0.01, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.basis, two.basis)
    above = [x.eigenvalues[x.eigenvalues > 0.01] for x in (one, two)]
    torch.testing.assert_close(*above, rtol=1e-3, atol=0)


def test_orthonormal_rows_span_what_they_were_made_of():
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 12, generator=g, dtype=torch.float64)
    rows[3] = rows[0] - 2 * rows[1]
    basis = orthonormal(rows)
    assert basis.shape == (4, 12)
    torch.testing.assert_close(basis @ basis.T, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(rows @ basis.T @ basis, rows)
    more = orthonormal(torch.cat([rows, torch.ones(1, 12, dtype=torch.float64)]), against=basis)
    assert more.shape == (1, 12) and (more @ basis.T).abs().max() < 1e-14


# All three through the same door


def pseudo_gradients_of_full_covariance(monkeypatch):
    """One output and squared error: draws of ±√2 have the square 2, which is the curvature, in every instance."""

    def drawn(at, rows, *_):
        signs = torch.rand(len(rows), 1, generator=torch.Generator().manual_seed(0)) < 0.5
        return (2.0 * signs - 1).double() * 2**0.5

    monkeypatch.setattr(ekfac_module, "pseudo_gradients", drawn)


def spectrum(name, G):
    if name == "ekfac":
        return importlib.import_module("fimoda_lib.methods.lft").EkfacSpectrum(G.at, G.rows)
    return spectrum_of(G, name, 1e-13)


@pytest.mark.parametrize("name", ["gram", "krylov", "ekfac"])
def test_a_spectrum_is_an_orthonormal_change_of_coordinates_in_which_G_is_diagonal(name, monkeypatch):
    pseudo_gradients_of_full_covariance(monkeypatch)
    G, _ = known(HALVES[:10], n=14, size=10)
    found = spectrum(name, G)
    assert len(found.eigenvalues) == 10
    np.testing.assert_allclose(found.eigenvalues.sort(descending=True)[0], HALVES[:10], rtol=1e-9)
    vectors = torch.randn(4, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inside = found.into(vectors)
    torch.testing.assert_close(found.out_of(inside), vectors)
    torch.testing.assert_close(inside @ inside.T, vectors @ vectors.T)
    torch.testing.assert_close(found.out_of(inside * found.eigenvalues), G.products(vectors))


@pytest.mark.parametrize(("kind", "outputs"), [("regression", 2), ("classification", 3)])
def test_of_a_network_gram_and_krylov_hold_all_of_G(kind, outputs):
    task, params = tiny(kind, outputs=outputs)
    dense = torch.from_numpy(oracles.gauss_newton(task, params, range(23)))
    for name in ("gram", "krylov"):
        found = spectrum(name, curvature_of(task, params))
        basis = found.out_of(torch.eye(len(found.eigenvalues), dtype=torch.float64))
        torch.testing.assert_close(basis.T * found.eigenvalues @ basis, dense, rtol=0, atol=1e-11)


def test_scaled_columns_are_a_scaled_curvature():
    """As Adam's preconditioner needs it: diag(scale) G diag(scale)."""
    task, params = tiny("classification", outputs=3)
    scale = torch.rand(31, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    dense = torch.from_numpy(oracles.gauss_newton(task, params, range(23)))
    for hold in (True, False):
        G = GaussNewton(Gradients(task, params), torch.arange(23), scale=scale, hold=hold)
        torch.testing.assert_close(G.dense(), scale[:, None] * dense * scale, rtol=0, atol=1e-12)
        torch.testing.assert_close(G.products(scale[None])[0], scale * (dense @ scale**2), rtol=0, atol=1e-12)
        values = torch.linalg.eigvalsh(scale[:, None] * dense * scale)
        found = Reduction(G).eigenvalues
        torch.testing.assert_close(found[-20:], values[-20:], rtol=0, atol=1e-12)


# Which one


def test_the_back_end_follows_from_the_sizes():
    assert choose_backend(spectra.GRAM_ROWS, 10**9) == "gram"
    assert choose_backend(spectra.GRAM_ROWS + 1, spectra.KRYLOV_PARAMETERS) == "krylov"
    assert choose_backend(spectra.GRAM_ROWS + 1, spectra.KRYLOV_PARAMETERS + 1) == "ekfac"
    assert choose_backend(10**7, 10**8) == "ekfac" and spectra.GRAM_ROWS < spectra.GRAM_LIMIT


def test_a_gram_matrix_that_does_not_fit_is_refused(monkeypatch):
    G, _ = known(HALVES[:10])
    monkeypatch.setattr(spectra, "GRAM_LIMIT", 9)
    message = refusal(spectrum_of, G, "gram", 1e-6, error=ValueError)
    assert "backend: 'gram' needs a 10 x 10 matrix; take 'krylov' beyond 9 rows" in message
