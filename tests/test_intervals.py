"""Lines show intervals as bands, or as error bars where bands would cover each other."""

import numpy as np
import pandas as pd
import pytest

from interp.figures.intervals import lines_with_intervals
from interp.figures.plots import lines_over_depth


def _lines(n: int, heights: list[float], half: float) -> list[pd.DataFrame]:
    layers = np.arange(n)
    return [
        pd.DataFrame({"layer": layers, "mean": at, "low": at - half, "high": at + half})
        for at in heights
    ]


def _traces(rows: list[pd.DataFrame]) -> list[list[dict]]:
    colours = ["red"] * len(rows)
    return [*lines_with_intervals(rows, x="layer", y="mean", colours=colours)]


def test_bands_that_are_apart_stay_bands() -> None:
    drawn = _traces(_lines(30, [0.0, 1.0], 0.1))
    assert all([trace.get("fill") for trace in traces] == ["toself", None] for traces in drawn)
    assert not any("error_y" in trace for traces in drawn for trace in traces)


def test_bands_that_cover_each_other_become_error_bars_at_different_layers() -> None:
    drawn = _traces(_lines(30, [0.0, 0.01, 0.02], 0.5))
    shown = [np.flatnonzero(~np.isnan(line["error_y"]["array"])) for (line,) in drawn]
    assert min(map(len, shown)) >= 5
    assert len({int(layer) for layers in shown for layer in layers}) == sum(map(len, shown))


def test_few_points_are_shifted_and_say_where_they_belong() -> None:
    drawn = _traces(_lines(4, [0.0, 0.01], 0.5))
    first, second = (line for (line,) in drawn)
    assert (np.abs(first["x"] - np.arange(4)) < 0.5).all()
    assert (first["x"] < second["x"]).all()
    np.testing.assert_array_equal(first["customdata"], np.arange(4))
    assert np.isfinite(first["error_y"]["array"]).all()


@pytest.mark.parametrize("missing", ["low", "mean"])
def test_what_is_missing_covers_nothing(missing: str) -> None:
    rows = _lines(30, [0.0, 0.01], 0.5)
    rows[0][missing] = np.nan
    assert len(_traces(rows)) == 2


def test_a_line_alone_in_a_panel_of_its_name_is_not_in_the_legend() -> None:
    frame = pd.concat(
        [
            rows.assign(of=name, panel=panel)
            for rows, name, panel in zip(
                _lines(30, [0.0, 1.0, 2.0], 0.1), "abc", ["a", "b", "b"], strict=True
            )
        ]
    )
    figure = lines_over_depth(frame, y="mean", groups="of", panels="panel", title="t")
    assert [trace.name for trace in figure.data if trace.showlegend and not trace.fill] == [
        "b",
        "c",
    ]


def test_more_than_four_panels_stand_in_rows() -> None:
    (rows,) = _lines(30, [0.0], 0.1)
    frame = pd.concat([rows.assign(of="x", panel=str(i)) for i in range(5)])
    figure = lines_over_depth(frame, y="mean", groups="of", panels="panel", title="t")
    assert len({axis.domain for axis in figure.select_yaxes()}) == 2
    assert len([*figure.select_yaxes()]) == 5
