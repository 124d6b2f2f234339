"""Figures of a report fit 760 pixels: no words beside the page, legends below."""

import json

from interp.figures.narrow import WIDTH, fitted
from interp.figures.wrapping import length_of
from tests.test_export import _lines, _skips


def _fitted(figure: object) -> dict:
    return fitted(json.loads(figure.to_json()))["layout"]


def test_words_are_in_lines_no_wider_than_their_panels() -> None:
    figure = _skips(30).update_layout(title="A title that is longer than a page is wide " * 3)
    figure.layout.annotations[0].text = "all positions but the first of every prompt"
    layout = _fitted(figure)
    assert (
        max(length_of(line, size=15.0) for line in layout["title"]["text"].split("<br>")) <= WIDTH
    )
    assert max(map(len, layout["annotations"][0]["text"].split("<br>"))) <= 20
    assert layout["margin"]["t"] > 80


def test_a_legend_is_below_and_has_room_of_its_own() -> None:
    layout = _fitted(_lines(4, 2))
    assert layout["legend"]["orientation"] == "h"
    assert layout["height"] > 420
    assert layout["margin"]["b"] > 50


def test_a_figure_without_names_keeps_its_height() -> None:
    figure = _lines(4, 1)
    figure.update_traces(showlegend=False)
    assert "height" not in _fitted(figure)
