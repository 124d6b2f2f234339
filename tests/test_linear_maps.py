"""Maps from streamed moments equal least squares on the whole, and similarities the textbook."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interp.sweeps.linear_maps import (
    RIDGES,
    Grams,
    Moments,
    choose_ridge,
    orthogonal_map,
    ridge_map,
)
from interp.sweeps.similarity import example_similarity

pytestmark = pytest.mark.filterwarnings("ignore")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streamed(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Moments:
    """Sum one source and one target over pieces of seven tokens."""
    weights = torch.ones(len(x)) if weights is None else weights
    moments = Moments.zeros((1, 1, 1), widths=(x.shape[1], y.shape[1]), device=torch.device("cpu"))
    for piece in torch.arange(len(x)).split(7):
        moments.add(x[None, piece], y[None, piece], weights[None, piece].double())
    return moments


def grams_of(fit: Moments, held: Moments) -> Grams:
    return Grams.of(fit.xx[0, 0], held.xx[0, 0])


def lstsq(x: Tensor, y: Tensor, weights: Tensor, ridge: float = 0.0) -> Tensor:
    """Return the predictor [1+d1 d2] by least squares over stacked rows: tokens, and one for every
    ridged direction.
    """
    root, mean = weights.sqrt()[:, None], (weights @ x) / weights.sum()
    rows = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x - mean], 1) * root
    size = ((x - mean).square() * weights[:, None]).sum() / x.shape[1]
    shrink = (ridge * size).sqrt() * torch.eye(x.shape[1] + 1, dtype=x.dtype)[1:]
    solved = np.linalg.lstsq(
        torch.cat([rows, shrink]).numpy(),
        torch.cat([y * root, 0 * noise(x.shape[1], y.shape[1])]).numpy(),
    )
    return torch.from_numpy(solved[0])


def predict(beta: Tensor, mean: Tensor, x: Tensor) -> Tensor:
    return beta[0] + (x - mean) @ beta[1:]


@pytest.mark.parametrize("ridge", [1e-10, 1e-3, 1.0])
@pytest.mark.parametrize("weighting", ["equal", "drawn"])
def test_a_ridge_map_equals_least_squares(ridge: float, weighting: str) -> None:
    x = noise(90, 8) @ noise(8, 8, seed=1) + 3
    y = x @ noise(8, 5, seed=2) + noise(90, 5, seed=3) - 7
    weights = torch.ones(90).double() if weighting == "equal" else noise(90, seed=4).exp()
    moments = streamed(x, y, weights)
    ours = ridge_map(
        grams_of(moments, moments).fit, moments.xx[0, 0], moments.xy[0, 0], ridge=ridge
    )
    mean = (weights @ x) / weights.sum()
    assert_close(ours(x), predict(lstsq(x, y, weights, ridge), mean, x), rtol=1e-9, atol=1e-7)


def test_the_ridge_is_the_one_with_the_least_validation_error() -> None:
    x, held_x = noise(30, 20), noise(40, 20, seed=1)
    truth = noise(20, 4, seed=2)
    y, held_y = x @ truth + 4 * noise(30, 4, seed=3), held_x @ truth + 4 * noise(40, 4, seed=4)
    fit, held = streamed(x, y), streamed(held_x, held_y)
    chosen = choose_ridge(grams_of(fit, held), fit.xy[0, 0], held.xy[0, 0], RIDGES)
    ones = torch.ones(30).double()
    errors = [
        (held_y - predict(lstsq(x, y, ones, ridge), x.mean(0), held_x)).square().sum()
        for ridge in RIDGES
    ]
    assert chosen == RIDGES[int(torch.stack(errors).argmin())]
    assert RIDGES[0] < chosen


def test_an_orthogonal_map_finds_a_rotation_and_its_scale() -> None:
    rotation = torch.linalg.qr(noise(9, 9))[0][:6]
    x = noise(50, 6, seed=1) * torch.arange(1, 7)
    moments = streamed(x, 2.5 * x @ rotation + 1)
    ours = orthogonal_map(grams_of(moments, moments).fit, moments.xx[0, 0], moments.xy[0, 0])
    assert_close(ours.weight, 2.5 * rotation)
    noisy = 2.5 * x @ rotation + noise(50, 9, seed=3)
    moments = streamed(x, noisy)
    ours = orthogonal_map(grams_of(moments, moments).fit, moments.xx[0, 0], moments.xy[0, 0])
    best = (noisy - ours(x)).square().sum()
    for seed in range(5):  # no nearby rotation is better
        turn = torch.linalg.qr(torch.eye(9) + 0.05 * noise(9, 9, seed=seed))[0]
        assert (noisy - ours.y_mean - (x - x.mean(0)) @ ours.weight @ turn).square().sum() > best


# Similarities


def naive_cka(x: Tensor, y: Tensor) -> float:
    def hsic(k: Tensor, m: Tensor) -> float:
        n, k, m = len(k), k - k.diag().diag(), m - m.diag().diag()
        ones = torch.ones(n, dtype=k.dtype)
        terms = (
            (k @ m).trace()
            + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (ones @ k @ m @ ones)
        )
        return float(terms / (n * (n - 3)))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5


def naive_rsa(x: Tensor, y: Tensor) -> float:
    upper = torch.triu_indices(len(x), len(x), 1).unbind()
    cosines = [
        torch.nn.functional.cosine_similarity(v[:, None], v[None], dim=-1)[upper] for v in (x, y)
    ]
    return float(torch.corrcoef(torch.stack(cosines))[0, 1])


@pytest.mark.parametrize("kind", ["cka", "rsa"])
def test_similarities_equal_the_textbook_on_every_subset(kind: str) -> None:
    x, y = noise(2, 20, 6) + 2, noise(3, 20, 4, seed=1)
    y[0] = x[0, :, :4] ** 2
    masks = (noise(4, 20, seed=2) > -0.5).double()
    ours = example_similarity(x, y, masks, kind=kind)
    naive = {"cka": naive_cka, "rsa": naive_rsa}[kind]
    for mask, grid in zip(masks.bool(), ours, strict=True):
        for s, t in itertools.product(range(2), range(3)):
            assert float(grid[s, t]) == pytest.approx(naive(x[s][mask], y[t][mask]), abs=1e-9)


def test_cka_does_not_see_rotations_shifts_and_scales_and_is_not_fooled_by_width() -> None:
    x, all_of_them = noise(1, 30, 6), torch.ones(1, 30)
    turned = 3 * x @ torch.linalg.qr(noise(6, 6, seed=1))[0] + 5
    assert_close(
        example_similarity(x, turned, all_of_them, kind="cka"), torch.ones(1, 1, 1).double()
    )
    rotated = x @ torch.linalg.qr(noise(6, 6, seed=1))[0]
    assert_close(
        example_similarity(x, rotated, all_of_them, kind="rsa"), torch.ones(1, 1, 1).double()
    )
    wide, unrelated = noise(40, 30, 300, seed=2), noise(40, 30, 300, seed=3)
    assert (
        example_similarity(wide, unrelated, all_of_them, kind="cka").mean().abs() < 0.01
    )  # the biased form: 0.9
