"""Axes at 4, 30 and 80 layers: few ticks, and no value that crushes all others."""

import numpy as np
import pandas as pd
import pytest

from interp.figures.plots import (
    grids_over_bars,
    grids_over_positions,
    layer_step,
    lines_over_depth,
)


@pytest.mark.parametrize("n", [1, 4, 12, 13, 30, 40, 41, 80, 100, 126])
def test_an_axis_has_at_most_thirteen_ticks(n: int) -> None:
    assert n / layer_step(n) <= 12
    assert layer_step(12) == 1


def lines(values: list[float]) -> pd.DataFrame:
    rows = [{"layer": i, "mean": value} for i, value in enumerate(values)]
    return pd.DataFrame(rows).assign(group="g", panel="p")


def drawn(values: list[float]) -> tuple[float | None, list[str]]:
    figure = lines_over_depth(lines(values), y="mean", groups="group", panels="panel", title="t")
    top = None if figure.layout.yaxis.range is None else figure.layout.yaxis.range[1]
    return top, [a.text for a in figure.layout.annotations if a.text.startswith("up to")]


def test_bands_have_no_points() -> None:
    rows = lines([1.0, 2.0, 3.0]).assign(low=0.5, high=3.5)
    band, line = lines_over_depth(rows, y="mean", groups="group", panels="panel", title="t").data
    assert (band.fill, band.mode, line.mode) == ("toself", "lines", "lines+markers")


def test_first_layers_that_crush_all_others_are_cut_off_with_their_number() -> None:
    top, said = drawn([108.0, *[15.0] * 29])
    assert top == pytest.approx(1.25 * 15)
    assert said == ["up to 108"]


@pytest.mark.parametrize(
    "values",
    [
        [0.0] * 29 + [1.0],  # a signal at the end is what there is to see
        [15.0, *[15.0] * 29],
        [108.0, 1.0, 1.0, 1.0],  # few layers: all are seen
        [np.nan] * 30,
        [0.0] * 30,
    ],
)
def test_nothing_else_is_cut_off(values: list[float]) -> None:
    assert drawn(values) == (None, [])


def test_colours_of_grids_end_where_nearly_all_values_are() -> None:
    grid = np.triu(np.full((30, 30), 0.2), 1)
    grid[0, 1:] = 7.0
    bars = pd.DataFrame({"skipped": range(30), "mean": 0.1, "low": 0.0, "high": 0.2})
    figure = grids_over_bars({"a": grid}, {"a": bars}, x="x", y="y", bars_label="b", title="t")
    heat = figure.data[0]
    assert 0.2 <= heat.zmax < 7
    assert heat.colorbar.ticktext[-1] == f"≥ {heat.zmax:.3g}"
    assert figure.layout.yaxis.autorange is None  # layer 0 is at the bottom


@pytest.mark.parametrize(("n_layers", "every"), [(30, 8), (80, 8), (80, 4), (4, 1)])
def test_a_grid_of_every_nth_layer_has_few_ticks(n_layers: int, every: int) -> None:
    layers = range(every - 2, n_layers + 1, every) if every > 1 else range(n_layers)
    rows = [{"layer": layer, "position": "-1", "mean": 1.0, "panel": "p"} for layer in layers]
    axis = grids_over_positions(
        pd.DataFrame(rows), panels="panel", y="layer", title="t", colour="c"
    ).layout.yaxis
    given = axis.tickvals
    ticks = range(0, n_layers, axis.dtick) if given is None else given
    assert len(ticks) <= 12
