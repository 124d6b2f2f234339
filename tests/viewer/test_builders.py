"""What pages are made of: grids, colours, selections, voids, circuits; nothing drawn."""

import base64
from dataclasses import replace
from xml.etree.ElementTree import fromstring

import numpy as np
import pytest
import torch
from interp_viewer import drawing, heat
from interp_viewer.colours import lut
from interp_viewer.grid import Axis, Grid
from interp_viewer.menu import entry_of
from interp_viewer.pages import skip, voids
from interp_viewer.routes import route
from interp_viewer.selection import Selection
from interp_viewer.strip import visible
from interp_viewer.text import number, plain, prompt_named, shortened
from interp_viewer.tries import passes, path_named
from interp_viewer.wiring import Edge, Wires, graph_of

from interp.figures.words import node_named
from interp.runs.folder import Cell
from interp.runs.registry import find_analyses
from interp.runs.viewing import address, app_path
from interp.sweeps.voids import active_layers
from interp.sweeps.wiring import Wiring


def grid(values: object, **how: object) -> Grid:
    array = np.array(values, np.float32)
    rows, cols = array.shape
    return Grid(
        "title", array, Axis.of("layer", rows, "layer"), Axis.of("token", cols, "token"), **how
    )


def test_signed_colours_are_centred_at_zero() -> None:
    assert grid([[-1, 3]], is_signed=True).range == (-3.0, 3.0)
    assert grid([[-5, 3]], is_signed=True).range == (-5.0, 5.0)
    assert grid([[0, 3]]).range == (0.0, 3.0)
    assert grid([[1, 3]], top=2.0).range == (0.0, 2.0)
    assert grid([[np.nan, 0]]).range == (0.0, 1.0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_blue_is_positive_and_red_negative_around_the_paper(theme: str) -> None:
    colours = lut(theme, is_signed=True).astype(int)
    assert len(colours) == 256
    assert colours[40, 0] > colours[40, 2]  # red below 0
    assert colours[215, 2] > colours[215, 0]  # blue above it
    paper = {"light": 0xF7, "dark": 0x27}[theme]
    assert abs(colours[127:129].mean() - paper) < 12


def test_the_sequential_scale_only_gets_lighter() -> None:
    lightness = lut("light", is_signed=False).astype(float) @ [0.3, 0.6, 0.1]
    assert (np.diff(lightness) > -1).all()


def test_what_is_missing_infinite_or_beyond_is_counted() -> None:
    captions = " ".join(grid([[np.nan, np.inf, 5.0, 1.0]], top=2.0, missing="no reason").captions())
    assert "Infinite cells, left blank: 1" in captions
    assert "Blank cells: 1 of 4 (no reason)" in captions
    assert "marked ▲: 1" in captions
    assert "All values are 0." in grid([[0.0, 0.0]]).captions()
    assert "There is no number to show." in grid([[np.nan]]).captions()


def test_the_texts_of_cells_are_sent_once_each() -> None:
    at = np.array([[0, 1], [2, 0]], np.int32)
    cells = replace(grid([[1.0, 2.0], [3.0, 4.0]]), texts=("the", "", "a"), text_at=at)
    assert [cells.text(*place) for place in np.ndindex(2, 2)] == ["the", "", "a", "the"]
    sent = heat._sent(cells)
    sent_at = np.frombuffer(base64.b64decode(sent["word_at"]), np.int32)
    assert [sent["words"][i] for i in sent_at] == ["the", "", "a", "the"]
    assert heat._sent(grid([[1.0]]))["words"] is None


def test_ranks_are_by_size() -> None:
    cells = grid([[1.0, -3.0], [2.0, np.nan]], is_signed=True)
    assert cells.rank(0, 1) == (1, 2, 3)
    assert cells.rank(0, 0) == (3, 0, 3)


def test_a_picked_place_selects_all_that_its_axis_means() -> None:
    axis = Axis.of("source", 3, "src", "layer", first=1)
    assert axis.picked(2) == {"src": 3, "layer": 3}
    assert axis.index({"src": None, "layer": 2}) == 1
    assert axis.index({"src": 9, "layer": 2}) is None
    assert axis.index({}) is None


def test_a_table_twin_has_the_top_row_on_top_and_every_column() -> None:
    cells = Grid(
        "t",
        np.eye(2, dtype=np.float32),
        Axis.of("layer", 2),
        Axis.of("token", 2, labels=("the", "the")),
    )
    frame = cells.to_frame()
    assert list(frame.index) == ["1", "0"]
    assert frame.columns.is_unique


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.5])
@pytest.mark.parametrize("has_first", [False, True])
def test_voids_are_those_of_the_analysis(alpha: float, has_first: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    norms = torch.rand(1, 9, 40, generator=generator) * 10
    first = torch.rand(1, 40, generator=generator) if has_first else None
    active = active_layers(norms, [alpha], first_range=first)[0, 0].numpy()
    found = voids.scores(norms[0].numpy(), None if first is None else first[0].numpy())
    assert ((found >= alpha) == active).all()


def wires(seed: int = 0) -> tuple[Wiring, Wires]:
    wiring = Wiring(3, 4, 2, False)
    scores = np.random.default_rng(seed).normal(size=wiring.is_edge.shape)
    return wiring, Wires(3, 4, 2, np.where(wiring.is_edge, scores, np.nan))


def test_edges_have_the_names_of_the_analysis() -> None:
    wiring, found = wires()
    assert (found.senders, found.receivers, found.n_edges) == (
        wiring.senders,
        wiring.receivers,
        int(wiring.is_edge.sum()),
    )


def test_the_largest_edges_come_first_and_have_their_share() -> None:
    _, found = wires()
    edges = found.largest(10)
    sizes = [abs(edge.score) for edge in edges]
    assert sizes == sorted(np.abs(found.scores[np.isfinite(found.scores)]), reverse=True)[:10]
    assert found.share(edges) == pytest.approx(sum(sizes) / np.nansum(np.abs(found.scores)))
    assert found.share(found.largest(found.n_edges)) == pytest.approx(1.0)
    assert len(found.largest(10_000)) == found.n_edges


def test_a_drawing_has_every_node_of_its_edges_in_its_lane() -> None:
    _, found = wires()
    edges = found.largest(30)
    (series,) = drawing.drawing(edges, found, labels={"m0": "<b>"}, pinned=set(), node="", edge="")[
        "series"
    ]
    assert {node["name"] for node in series["data"]} == {
        node_named(name) for edge in edges for name in (edge.sender, edge.node)
    }
    assert len(series["links"]) == 30
    assert all(
        (link["lineStyle"]["color"] == drawing.POSITIVE) == (edge.score >= 0)
        for link, edge in zip(series["links"], edges, strict=True)
    )
    places = drawing.places(found)
    assert len(set(places.values())) == len(places)


def test_nodes_have_the_names_that_people_give_them() -> None:
    keys = ["embed", "a23.h3", "q2.h11", "k2.h0", "v2.h0", "m7", "logits"]
    assert [node_named(key) for key in keys] == [
        "embed",
        "L23H3",
        "L2H11 (query)",
        "L2H0 (key)",
        "L2H0 (value)",
        "MLP 7",
        "logits",
    ]


def test_a_circuit_of_eighty_layers_is_drawn() -> None:
    n_layers, n_heads = 80, 2
    size = (n_layers * (3 * n_heads + 1) + 1, n_layers * (n_heads + 1) + 1)
    found = Wires(n_layers, n_heads, n_heads, np.random.default_rng(0).normal(size=size))
    spec = drawing.drawing(found.largest(2000), found, labels={}, pinned=set(), node="", edge="")
    assert len(spec["series"][0]["links"]) == 2000
    assert len(drawing.places(found)) == len(found.senders) + 1
    fromstring(drawing.svg(spec))


def test_a_picture_of_a_circuit_escapes_labels() -> None:
    _, found = wires()
    labels = {name: "<script>" for name in found.senders}
    text = drawing.svg(
        drawing.drawing(found.largest(30), found, labels=labels, pinned=set(), node="", edge="")
    )
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_picture_of_a_circuit_is_what_is_on_screen() -> None:
    _, found = wires()
    spec = drawing.drawing(
        found.largest(30), found, labels={"m0": "first"}, pinned={"m0"}, node="embed", edge=""
    )
    text = drawing.svg(spec)
    assert text.count("<path d=") - 1 == 30  # one of them is the arrow's head
    assert text.count("<rect") == len(spec["series"][0]["data"])
    for node in spec["series"][0]["data"]:
        assert f'fill="{node["itemStyle"]["color"]}"' in text
    assert ">first</text>" in text
    fromstring(text)


def test_a_circuit_is_saved_as_a_graph() -> None:
    graph = graph_of(
        [Edge("embed", "q0.h1", 0.5), Edge("a0.h1", "logits", -1.0)], {"embed": "words"}
    )
    assert set(graph.nodes) == {"embed", "a0.h1", "logits"}
    assert graph.nodes["embed"]["label"] == "words"
    assert graph.edges["embed", "a0.h1", "q0.h1"]["score"] == 0.5


def test_an_address_is_read_as_it_is_written() -> None:
    selection = Selection(
        run="a/b", model="zoo/x", layer=0, token=3, of="KL(lens‖final)", thr=0.8, k=40
    )
    assert Selection.read(selection.params()) == selection
    assert "token" not in Selection(run="a").params()
    assert Selection(layer=0).params() == {"layer": "0"}


def test_another_run_drops_what_belonged_to_the_first() -> None:
    moved = Selection(run="a", model="m", ex=3, layer=2, edge="x~y").moved(run="b")
    assert (moved.model, moved.ex, moved.edge, moved.layer) == ("", None, "", 2)
    assert Selection(run="a", ex=3).moved(run="a").ex == 3


def test_numbers_that_there_are_not_are_dropped_and_said() -> None:
    kept = Selection.read({"layer": "9", "ex": "one", "thr": "-1", "src": "-2"}).within(
        {"layer": 5}
    )
    assert (kept.layer, kept.ex, kept.thr, kept.src) == (None, None, None, None)
    assert len(kept.bad) == 4


def test_text_is_no_markup() -> None:
    assert plain("*a* [b](c) <d> $e$ `f`") == r"\*a\* \[b\]\(c\) \<d\> \$e\$ \`f\`"
    assert plain("a\nb") == "a b"
    assert visible(" a\n\t") == "·a↵⇥"
    assert visible("") == "∅"
    assert [number(x) for x in (-0.5, 0.0, -0.0, 1e-5, -3e-17, 123.456)] == [
        "−0.500",
        "0",
        "0",
        "1.00 × 10⁻⁵",
        "≈0",
        "123.5",
    ]


def test_a_prompt_is_named_by_its_text_and_answer() -> None:
    prompt = {"id": "facts-7", "text": "The capital of\nFrance is", "answer": " Paris"}
    assert prompt_named(3, prompt) == "3 · The capital of France is → Paris"
    assert prompt_named(0, {"id": "facts-7"}) == "0 · facts-7"
    long = shortened("The beginning " + "and more " * 40 + "of the end", 40)
    assert len(long) <= 40
    assert long.startswith("The beginning")
    assert long.endswith("of the end")


def test_every_choice_of_layer_skip_has_its_own_name() -> None:
    names = [
        skip.Effect(scope, statistic, "all positions", d).name
        for scope in ("all", "future", "direct", "direct_future")
        for statistic in skip.STATISTICS
        for d in (False, True)
    ]
    assert len(set(names)) == len(names)


def test_every_analysis_has_a_page_and_its_address_leads_there() -> None:
    assert app_path().is_file()
    for name in find_analyses():
        page = address("r", model="m", task="t", analysis=name).partition("?")[0]
        assert page == entry_of(name).name
    assert "label=mlp" in address(
        "r", model="m", task="t", analysis="layer_skip", label="mlp", layer=3
    )
    assert Cell("m", "t", "layer_skip", "mlp").path.endswith("layer_skip@mlp")


def test_a_path_is_named_by_its_spans_and_cut_where_it_goes_back() -> None:
    path = [0, 1, 2, 4, 4, 2, 3, 4, 7]
    assert path_named(path) == "0–2, 4, 4, 2–4, 7"
    assert passes(path) == [[0, 1, 2, 4], [4], [2, 3, 4, 7]]
    assert (path_named([3]), passes([3])) == ("3", [[3]])


def test_a_path_is_drawn_with_what_it_jumps_over() -> None:
    figure = route([1, 2, 4, 3, 4, 6], 8, "search")
    blocks = {bar.name: bar for bar in figure.data if bar.type == "bar"}
    at = {
        name: [(x, round(base + y / 2)) for x, base, y in zip(bar.x, bar.base, bar.y, strict=True)]
        for name, bar in blocks.items()
    }
    assert at["run"] == [(1, 0), (2, 0), (4, 0), (3, 1), (4, 1), (6, 1)]
    assert at["skipped"] == [(0, 0), (3, 0), (5, 1), (7, 1)]
    (back,) = (trace for trace in figure.data if trace.type == "scatter")
    assert (back.x[0], back.x[-1]) == (4, 3)
