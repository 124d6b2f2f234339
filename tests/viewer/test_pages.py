"""Every page, in every state that a run folder can be in, without a browser."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
from interp_viewer.menu import WITHOUT_RUN, entries
from interp_viewer.pages import heads
from interp_viewer.pages.lens import READINGS
from interp_viewer.reading import find_run
from interp_viewer.selected import Selected
from interp_viewer.selection import Selection
from interp_viewer.tries import KINDS, Tries, path_named
from streamlit.testing.v1 import AppTest

from benchmarks import viewer as viewer_benchmark
from benchmarks.viewer import make_run
from interp.analyses.head_patterns import targets
from interp.analyses.logit_lens import measures
from interp.files.whole import read_json, write_json
from interp.runs import Study, execute, open_run

Draw = Callable[..., AppTest]
OF_A_RUN = [name for name in entries() if name not in WITHOUT_RUN]
HAS = {"circuit": "ioi", "heads": "ioi", "features": "ioi"}
COMPARED = [name for name, entry in entries().items() if hasattr(entry.module, "COMPARED")]
PAIR = ("zoo/hops-4l", "two-hop")
NEEDS = {entry.name: entry.analyses for entry in entries().values() if entry.analyses}


def texts(at: AppTest) -> str:
    """Return all that a page says."""
    kinds = (
        at.markdown,
        at.caption,
        at.error,
        at.warning,
        at.info,
        at.code,
        at.title,
        at.subheader,
        at.text,
    )
    said = [str(element.value) for kind in kinds for element in kind]
    return "\n".join([*said, *(fold.label for fold in at.expander)]).replace("\\", "")


def address(at: AppTest, *names: str) -> list[str]:
    """Return parameters of a page's address."""
    found = [at.query_params[name] for name in names]
    return [value[0] if isinstance(value, list) else value for value in found]


def is_fine(at: AppTest) -> bool:
    """Tell whether a page was drawn, without an error of its own."""
    assert not at.exception, at.exception
    return not at.error


@pytest.mark.parametrize("page", OF_A_RUN)
def test_a_page_of_a_finished_run(made: Path, seen: Draw, page: str) -> None:
    at = seen(made, page, run=HAS.get(page, "hops"), layer=1, token=2, src=1, tgt=2)
    assert is_fine(at), texts(at)


@pytest.mark.parametrize("page", OF_A_RUN)
def test_a_page_of_a_run_that_lacks_its_analysis_says_how_to_make_it(
    made: Path, seen: Draw, page: str
) -> None:
    at = seen(made, page, run="hops" if page in HAS else "ioi")
    assert not at.exception
    if page not in ("overview", "analysis", "compare", "data"):
        assert "interp run --model" in texts(at)


@pytest.mark.parametrize("page", list(entries()))
def test_a_page_without_any_folder(tmp_path: Path, seen: Draw, page: str) -> None:
    at = seen(tmp_path / "none", page)
    assert not at.exception
    if page == "runs":
        assert "no folder" in texts(at)


def test_an_empty_folder_says_how_to_make_a_run(tmp_path: Path, seen: Draw) -> None:
    assert "interp run --model zoo/hops-4l" in texts(seen(tmp_path, "runs"))


def test_the_list_has_every_run(made: Path, seen: Draw) -> None:
    at = seen(made, "runs")
    assert is_fine(at)
    assert set(at.dataframe[0].value["run"]) == {"hops", "ioi"}


def test_the_list_is_narrowed_by_words(made: Path, seen: Draw) -> None:
    at = seen(made, "runs")
    at.text_input[0].set_value("names-6l circuit").run()
    assert list(at.dataframe[0].value["run"]) == ["ioi"]


@pytest.mark.parametrize("page", OF_A_RUN)
def test_a_run_that_is_not_there(made: Path, seen: Draw, page: str) -> None:
    at = seen(made, page, run="hop")
    assert not at.exception
    assert "unknown run" in texts(at)
    assert "hops" in texts(at)


@pytest.mark.parametrize("page", OF_A_RUN)
def test_an_unfinished_run_shows_what_there_is(root: Path, seen: Draw, page: str) -> None:
    name = HAS.get(page, "hops")
    run, needed = read_json(root / name / "run.json"), NEEDS.get(page, ("layer_skip",))
    kept = {path: cell for path, cell in run["cells"].items() if cell["analysis"] not in needed}
    write_json(
        root / name / "run.json",
        run | {"cells": kept or {"other": next(iter(run["cells"].values())) | {"analysis": "x"}}},
    )
    at = seen(root, page, run=name)
    assert not at.exception
    assert ("interp run --model" in texts(at)) == (page in NEEDS)
    if page == "skip":
        assert (
            "9 of 10 cells"
            in seen(root, "runs").dataframe[0].value.set_index("run").loc["hops", "status"]
        )


def test_a_run_without_a_cell_waits(root: Path, seen: Draw) -> None:
    run = read_json(root / "hops" / "run.json")
    write_json(root / "hops" / "run.json", run | {"cells": {}})
    at = seen(root, "lens", run="hops")
    assert not at.exception
    assert "Nothing has been measured" in texts(at)


@pytest.mark.parametrize("page", OF_A_RUN)
def test_a_failed_cell_says_why(root: Path, seen: Draw, page: str) -> None:
    name = HAS.get(page, "hops")
    run = read_json(root / name / "run.json")
    for cell in run["cells"].values():
        if cell["analysis"] in NEEDS.get(page, ("layer_skip",)):
            cell |= {
                "status": "failed",
                "error": "out of <b>memory</b>",
                "traceback": "Traceback: line 1",
            }
    write_json(root / name / "run.json", run)
    at = seen(root, page, run=name)
    assert not at.exception
    assert ("out of <b>memory</b>" in texts(at)) == (page == "overview" or page in NEEDS)
    assert ("Traceback: line 1" in texts(at)) == (page in NEEDS)


@pytest.mark.parametrize("page", OF_A_RUN)
def test_a_newer_schema_asks_for_an_upgrade(root: Path, seen: Draw, page: str) -> None:
    run = read_json(root / "hops" / "run.json")
    write_json(root / "hops" / "run.json", run | {"schema": 99})
    at = seen(root, page, run="hops")
    assert not at.exception
    assert "upgrade interp" in texts(at)


def test_a_damaged_part_is_named_and_other_pages_go_on(root: Path, seen: Draw) -> None:
    part = next((root / "hops").rglob("layer_skip/parts/00000.safetensors"))
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(content)
    at = seen(root, "skip", run="hops")
    assert not at.exception
    assert "00000.safetensors is damaged" in texts(at)
    assert is_fine(seen(root, "lens", run="hops"))


@pytest.mark.parametrize("page", OF_A_RUN)
def test_damaged_files_are_named_on_every_page(root: Path, seen: Draw, page: str) -> None:
    for path in (root / HAS.get(page, "hops")).rglob("*"):
        if path.suffix in (".parquet", ".safetensors") or path.name in (
            "figure.json",
            "result.json",
        ):
            content = bytearray(path.read_bytes())
            content[-3] ^= 1
            path.write_bytes(content)
    name = HAS.get(page, "hops")
    at = seen(root, page, run=name, layer=1, token=2, src=1, tgt=2, cmp=f"{name}:1")
    assert not at.exception
    assert ("is damaged" in texts(at)) == (page != "overview")  # it reads the record alone
    assert "Traceback" not in texts(at)


@pytest.mark.parametrize(
    "content", ["[]", "5", "{}", '{"tokens": 5}', '{"vocabulary": [1], "tokens": ["a"]}']
)
@pytest.mark.parametrize("file", ["prompts.jsonl", "tokens.json", "vocabulary.json", "run.json"])
def test_a_file_of_something_else_is_named(root: Path, seen: Draw, file: str, content: str) -> None:
    path = next((root / "hops").rglob(file))
    path.write_text(content)
    at = seen(root, "overview", run="hops")
    assert not at.exception
    assert (file == "prompts.jsonl" and content[0] == "{") or f"{file} is" in texts(at)


def test_findings_have_their_number_and_interval(root: Path, seen: Draw) -> None:
    first = read_json(root / "hops" / "run.json")["cells"]["zoo--hops-4l/two-hop/layer_skip"][
        "findings"
    ][0]
    value, low, high = (f"{first[name]:.3g}" for name in ("value", "low", "high"))
    said = texts(seen(root, "overview", run="hops"))
    assert first["claim"] in said
    assert f": {value} [{low}, {high}], 16 prompts" in said.replace("−", "-")


def test_findings_have_their_control_and_their_strongest_rival(root: Path, seen: Draw) -> None:
    run = read_json(root / "hops" / "run.json")
    cell = run["cells"]["zoo--hops-4l/two-hop/layer_skip"]
    number = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 16}
    cell["findings"] = [
        {
            "claim": "Skipping layer 1 costs most.",
            "measure": "loss",
            **number,
            "control": {"name": "a random layer", **number},
            "rival": {"name": "layer 2", **number, "value": -0.5, "low": None, "high": None},
        }
    ]
    write_json(root / "hops" / "run.json", run)
    for page in ("overview", "skip"):
        said = texts(seen(root, page, run="hops"))
        assert "Skipping layer 1 costs most." in said
        assert "Control, a random layer: 0.5 [0.25, 0.75], 16 prompts" in said
        assert "Strongest rival, layer 2: −0.5, 16 prompts" in said


def test_a_run_without_findings_says_its_summary(root: Path, seen: Draw) -> None:
    run = read_json(root / "hops" / "run.json")
    for cell in run["cells"].values():
        del cell["findings"]
        cell["summary"] = "As interp 0.1 said it."
    write_json(root / "hops" / "run.json", run)
    for page in ("overview", "analysis", "skip"):
        at = seen(root, page, run="hops")
        assert is_fine(at)
        assert "As interp 0.1 said it." in texts(at)


@pytest.mark.parametrize("lack", ["models", "versions", "tasks", "config"])
def test_a_record_that_lacks_something_is_named(root: Path, seen: Draw, lack: str) -> None:
    run = read_json(root / "hops" / "run.json")
    write_json(root / "hops" / "run.json", run | {lack: []})
    at = seen(root, "overview", run="hops")
    assert not at.exception
    assert "is not a run's" in texts(at)


@pytest.mark.parametrize("file", ["frame.parquet", "figure.json", "result.json"])
def test_a_damaged_file_is_named(root: Path, seen: Draw, file: str) -> None:
    path = next((root / "hops").rglob(f"block_influence/{file}"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    at = seen(root, "analysis", run="hops", of="block_influence")
    assert not at.exception
    assert "is damaged" in texts(at)
    assert is_fine(seen(root, "skip", run="hops"))


@pytest.mark.parametrize(
    ("size", "layer", "token"), [("one", 1, 0), ("long", 1, 799), ("deep", 79, 3)]
)
@pytest.mark.parametrize("page", OF_A_RUN)
def test_one_token_many_tokens_many_layers(
    sizes: Path, seen: Draw, page: str, size: str, layer: int, token: int
) -> None:
    run = read_json(sizes / size / "run.json")
    assert {cell["status"] for cell in run["cells"].values()} == {"ok"}
    at = seen(sizes, page, run=size, layer=layer, token=token, src=layer, tgt=0, cmp=f"{size}:1")
    assert is_fine(at), texts(at)
    made = {cell["analysis"] for cell in run["cells"].values()}
    assert ("interp run" in texts(at)) == (page in NEEDS and not made.intersection(NEEDS[page]))


def test_one_prompt_has_no_interval(tmp_path: Path, seen: Draw) -> None:
    make_run(tmp_path / "one", n_taps=5, n_pos=8, n_prompts=1)
    at = seen(tmp_path, "lens", run="one", layer=1, token=1)
    assert is_fine(at)
    assert "one prompt: no interval" in texts(at)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"layer": 99}, "there is 0 to 4"),
        ({"token": -1}, "there is 0 to"),
        ({"ex": "x"}, "is not a number"),
    ],
)
def test_a_bad_link_is_said_and_ignored(
    made: Path, seen: Draw, bad: dict[str, object], said: str
) -> None:
    at = seen(made, "lens", run="hops", **bad)
    assert is_fine(at)
    assert said in " ".join(element.value for element in at.warning)


def test_hostile_text_stays_text(root: Path, seen: Draw) -> None:
    hostile = (
        "<img src=x onerror=alert(1)> ![](http://example.com/x.png) [a](javascript:alert(1)) **b**"
    )
    folder = root / "hops" / "zoo--hops-4l" / "two-hop"
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps(row | {"id": hostile, "text": hostile}) + "\n" for row in rows)
    )
    run = read_json(root / "hops" / "run.json")
    for cell in run["cells"].values():
        cell["summary"] = hostile
        numbers = {"value": 1.0, "low": None, "high": None, "n": 3}
        other = {"name": hostile, **numbers}
        claimed = {"claim": hostile, "measure": hostile, **numbers}
        cell["findings"] = [claimed | {"control": other, "rival": other}]
    write_json(root / "hops" / "run.json", run)
    for page in ("overview", "lens", "skip", "backpatch", "analysis"):
        at = seen(root, page, run="hops", layer=1, token=1, src=1, tgt=0)
        assert is_fine(at)
        for element in [*at.markdown, *at.caption]:
            assert not re.search(r"(?<!\\)[<\]]", element.value)  # every < and ] is escaped
            assert not element.allow_html


def test_boxes_move_the_selection_in_the_address(made: Path, seen: Draw) -> None:
    at = seen(made, "lens", run="hops")
    layer = next(box for box in at.selectbox if box.label == "Before layer")
    layer.set_value(2).run()
    assert address(at, "layer") == ["2"]
    token = next(box for box in at.selectbox if box.label == "Token")
    token.set_value(3).run()
    assert address(at, "layer", "token") == ["2", "3"]
    assert "before layer 2, token 3" in texts(at)


def test_prompts_are_walked_through(made: Path, seen: Draw) -> None:
    at = seen(made, "lens", run="hops", layer=1)
    next(button for button in at.button if button.label == "▶").click().run()
    assert address(at, "ex", "layer") == ["1", "1"]
    next(button for button in at.button if button.label == "◀").click().run()
    assert address(at, "ex") == ["0"]


def test_what_a_page_shows_is_in_the_address_too(made: Path, seen: Draw) -> None:
    at = seen(made, "skip", run="hops")
    next(box for box in at.segmented_control if box.label == "Over").set_value("all").run()
    assert address(at, "over") == ["all"]
    assert is_fine(at)


@pytest.mark.parametrize(
    ("src", "tgt", "says"),
    [(99, 99, "is not in this picture"), (-1, 2, "is below 0; ignored")],
)
@pytest.mark.parametrize("page", ["skip", "backpatch", "depthmap"])
def test_a_pair_that_there_is_not_is_said(
    made: Path, seen: Draw, page: str, src: int, tgt: int, says: str
) -> None:
    at = seen(made, page, run="hops", src=src, tgt=tgt)
    assert is_fine(at)
    assert says in texts(at)
    assert "newly broken" not in texts(at)


def test_joined_models_are_drawn_by_cut_and_by_block_with_their_controls(
    made: Path, seen: Draw
) -> None:
    at = seen(made, "stitch", run="hops", of="accuracy")
    assert is_fine(at)
    cuts, blocks = (json.loads(chart.proto.spec) for chart in at.get("plotly_chart"))
    of_cuts, of_blocks = ({trace.get("name") for trace in each["data"]} for each in (cuts, blocks))
    assert {"this below, other above", "this below, untrained above", "this model"} <= of_cuts
    assert {"other's block", "block skipped", "block's change permuted"} <= of_blocks
    assert "the same change permuted, 2 copies" in texts(at)


def test_continued_states_have_a_grid_of_their_taps_and_a_frontier(made: Path, seen: Draw) -> None:
    at = seen(made, "depthmap", run="hops", of="continued_measured", src=2, tgt=4)
    assert is_fine(at)
    assert "continued at layers of itself" in texts(at)
    assert "The furthest layer at which what a layer made still answers" in texts(at)
    assert "is not in this picture" in texts(
        seen(made, "depthmap", run="hops", src=1, of="continued_measured")
    )


@pytest.mark.parametrize("cmp", ["hops:²", "hops:x", "hops:99", ":", "../hops:1"])
def test_a_comparison_with_nothing_is_no_crash(made: Path, seen: Draw, cmp: str) -> None:
    assert is_fine(seen(made, "compare", run="hops", cmp=cmp))


@pytest.mark.parametrize("page", NEEDS)
def test_a_page_says_what_its_analyses_ask_and_how_they_mislead(
    made: Path, seen: Draw, page: str
) -> None:
    run = HAS.get(page, "hops")
    said = texts(seen(made, page, run=run))
    for info in read_json(made / run / "run.json")["cells"].values():
        if info["analysis"] in NEEDS[page] and page != "analysis":
            assert info["question"] in said
            assert info["how"] in said
            assert info["caveat"] in said
            assert all(finding["claim"] in said for finding in info["findings"])


def test_layers_at_a_glance_lead_to_their_pages(made: Path, seen: Draw) -> None:
    at = seen(made, "overview", run="hops", layer=2)
    layout = json.loads(at.get("plotly_chart")[0].proto.spec)["layout"]
    links = [
        urlparse(unescape(link))
        for note in layout["annotations"]
        for link in re.findall(r'href="([^"]*)"', note["text"])
    ]
    assert {"residual", "skip", "lens"} <= {link.path for link in links}
    for link in links:
        assert entries()[link.path]
        params = parse_qs(link.query)
        assert (params["run"], params["layer"]) == (["hops"], ["2"])


def test_prompts_are_chosen_by_their_text(made: Path, seen: Draw) -> None:
    rows = (made / "hops" / "zoo--hops-4l" / "two-hop" / "prompts.jsonl").read_text().splitlines()
    texts_of = [json.loads(row)["text"][:20] for row in rows]
    for page, label in (("lens", "Prompt"), ("compare", "and prompt")):
        at = seen(made, page, run="hops", cmp="hops:1")
        box = next(box for box in at.selectbox if box.label == label)
        assert len(box.options) == len(texts_of)
        assert all(text in option for text, option in zip(texts_of, box.options, strict=True))


@pytest.mark.parametrize("page", COMPARED)
def test_layers_grow_upwards_everywhere(made: Path, page: str) -> None:
    run = find_run(made, HAS.get(page, "hops"))
    model, task = run.models_and_tasks[0]
    prompts = run.prompts(model, task)
    here = Selected(run, Selection(run=run.id), model, task, prompts, ())
    module = entries()[page].module
    for of in module.choices(here):
        assert module.grid(here, of).is_upward


def test_two_prompts_are_compared(made: Path, seen: Draw) -> None:
    at = seen(made, "compare", run="hops", cmp="hops:1", node="logit_lens", layer=1, token=1)
    assert is_fine(at)
    assert "prompt 0 minus prompt 1" in texts(at)


def test_runs_of_other_depths_are_compared_over_depth(tmp_path: Path, seen: Draw) -> None:
    for name, n_taps in (("a", 5), ("b", 9)):
        make_run(tmp_path / name, n_taps=n_taps, n_pos=8, n_prompts=2)
    at = seen(tmp_path, "compare", run="a", cmp="b:0")
    assert is_fine(at)
    assert "no cell has a counterpart" in texts(at)


def test_a_node_of_a_circuit_is_pinned_labelled_and_hidden(root: Path, seen: Draw) -> None:
    at = seen(root, "circuit", run="ioi", node="m0")
    assert is_fine(at), texts(at)
    next(button for button in at.button if button.label == "Pin").click().run()
    kept = read_json(root / "ioi" / "annotations.json")
    assert next(iter(kept.values()))["pinned"] == ["m0"]
    next(box for box in at.text_input if box.label == "Label").set_value(
        "duplicate <b>token</b>"
    ).run()
    assert next(iter(read_json(root / "ioi" / "annotations.json").values()))["labels"] == {
        "m0": "duplicate <b>token</b>"
    }
    next(button for button in at.button if button.label == "Hide").click().run()
    assert next(iter(read_json(root / "ioi" / "annotations.json").values()))["hidden"] == ["m0"]
    senders = set(at.dataframe[0].value["sender"])
    assert senders
    assert not senders & {"m0", "MLP 0"}
    assert not at.exception


def test_a_head_in_a_circuit_leads_to_what_it_attends_to(made: Path, seen: Draw) -> None:
    def links(node: str) -> list[str]:
        at = seen(made, "circuit", run="ioi", node=node, of="edges between components")
        assert is_fine(at), texts(at)
        return [link.proto.query_string for link in at.page_link if "attends to" in link.label]

    (link,) = links("a1.h2")
    assert parse_qs(link) | {"layer": ["1"], "head": ["2"]} == parse_qs(link)
    assert not {"node", "of"} & {*parse_qs(link)}
    assert links("m0") == []


def test_the_size_of_the_circuit_is_marked_on_its_curve(made: Path, seen: Draw) -> None:
    at = seen(made, "circuit", run="ioi", k=20)
    n_edges = int(re.search(r"20 of ([\d,]+) edges", texts(at))[1].replace(",", ""))
    layout = json.loads(at.get("plotly_chart")[0].proto.spec)["layout"]
    (text,) = layout["annotations"]
    assert text["x"] == pytest.approx(np.log10(20 / n_edges))
    assert layout["shapes"][0]["x0"] == pytest.approx(20 / n_edges)


def test_edges_of_a_tiny_share_are_not_drawn_but_counted(made: Path, seen: Draw) -> None:
    at = seen(made, "circuit", run="ioi", k=2000)
    assert is_fine(at), texts(at)
    scores = at.dataframe[0].value["score"].abs()
    assert scores.min() >= 0.02 * scores.max()
    shown = re.search(r"\*\*(\d+) of ([\d,]+) edges,", texts(at))
    assert int(shown[1]) == len(scores)
    n_more = int(re.search(r"(\d+) more are below 2% of the largest and not drawn", texts(at))[1])
    assert len(scores) + n_more == min(2000, int(shown[2].replace(",", "")))


def test_nodes_by_token_take_the_place_of_edges(made: Path, seen: Draw) -> None:
    at = seen(made, "circuit", run="ioi")
    box = next(box for box in at.selectbox if box.label == "Show")
    box.set_value(1).run()
    assert is_fine(at), texts(at)
    assert address(at, "of") == [box.options[1]]
    assert {"Layer", "Token"} <= {box.label for box in at.selectbox}


def test_a_head_shows_its_pattern_where_it_was_kept(made: Path, seen: Draw) -> None:
    at = seen(made, "heads", run="ioi", layer=1, head=2, ex=0)
    assert is_fine(at), texts(at)
    assert "L1H2, prompt 0: attention from each token" in texts(at)
    assert "makes most probable" in texts(at)
    at = seen(made, "heads", run="ioi", layer=1, head=2, ex=5)
    assert "the pattern of prompt 5 was not kept; kept are prompts 0, 1, 2" in texts(at)


def test_a_feature_shows_where_it_is_most_active_and_leads_to_that_prompt(
    made: Path, seen: Draw
) -> None:
    at = seen(made, "features", run="ioi", ex=0)
    assert is_fine(at), texts(at)
    (table,) = (frame.value for frame in at.dataframe)
    assert list(table["kind"])[-1] == "error"
    effects = table.loc[table["kind"] != "error", "exact"].abs()
    assert list(effects) == sorted(effects, reverse=True)
    (box,) = (box for box in at.selectbox if box.label == "Feature")
    box.set_value(2).run()
    assert address(at, "of") == [table["feature"][2]]
    examples = [button for button in at.button if "«" in button.label]
    assert len(examples) == 8
    ex = int(examples[3].key.removeprefix("example-"))
    examples[3].click().run()
    assert is_fine(at), texts(at)
    assert address(at, "ex") == [str(ex)]


def test_the_page_of_paths_reads_tries_as_the_result_does(made: Path) -> None:
    result = open_run(made / "hops")["zoo/hops-4l", "two-hop", "path_search"]
    run = find_run(made, "hops")
    cell = next(cell for cell in run.cells(*PAIR) if cell.analysis == "path_search")
    for kind in KINDS:
        tries = Tries.of(run.measured(cell), kind)
        usage, used = tries.usage(), []
        for row in range(len(tries.paths)):
            number, path = tries.shortest(row), result.shortest(row, kind)
            assert (None if number is None else tuple(tries.path(row, number))) == path
            used += [usage[row]] if np.isfinite(usage[row]).all() else []
            assert (path is None) == np.isnan(usage[row]).all()
            if kind == "search":
                front = [tuple(tries.path(row, i)) for i in tries.front(row)]
                assert front == list(result.front(row)["path"])
        assert len(used) >= len(result.usage[kind]) > 0
        assert {tuple(runs) for runs in result.usage[kind]} <= {tuple(runs) for runs in used}


def test_the_paths_of_a_prompt_are_those_of_the_chosen_kind(made: Path, seen: Draw) -> None:
    run = find_run(made, "hops")
    cell = next(cell for cell in run.cells(*PAIR) if cell.analysis == "path_search")
    known = {kind: Tries.of(run.measured(cell), kind) for kind in KINDS}
    for ex in range(0, len(known["search"].paths), 4):
        at = seen(made, "paths", run="hops", ex=ex)
        for kind, tries in reversed(known.items()):  # at first, it is the other
            (box,) = (box for box in at.selectbox if box.label == "Shortest right path of")
            box.set_value(list(KINDS).index(kind)).run()
            assert is_fine(at), texts(at)
            assert address(at, "of") == [kind]
            number = tries.shortest(ex)
            if number is None:
                assert f"Prompt {ex}: none of the 6 paths is right ({kind})" in texts(at)
            else:
                named = path_named(tries.path(ex, number))
                assert f"Layers in order: {named}; log-probability" in texts(at)


def test_a_prompt_without_paths_says_so_beside_the_others(root: Path, seen: Draw) -> None:
    run = read_json(root / "hops" / "run.json")
    run["cells"]["zoo--hops-4l/two-hop/path_search"]["prompts"] = [*range(15), 16]
    write_json(root / "hops" / "run.json", run)
    at = seen(root, "paths", run="hops", ex=15)
    assert is_fine(at), texts(at)
    assert "Prompt 15 was left out of this analysis; choose another one" in texts(at)


def test_the_page_of_heads_knows_the_tensors_order() -> None:
    assert (heads.READINGS, heads.COPIES) == (targets.READINGS, targets.COPIES)


def test_the_page_of_the_lens_knows_the_order_of_the_tensor() -> None:
    names = measures.at_positions(np.arange(7.0)[None, None, None], overlap="overlap").items()
    order = {name: int(values.item()) for name, values in names}
    known = {name.removesuffix(" of the most probable tokens"): i for name, i in READINGS.items()}
    assert {name: order[name] for name in known} == known


def test_entropy_and_margin_are_offered_where_a_run_has_them(made: Path, seen: Draw) -> None:
    for over in ("", "all"):
        for of in ("entropy, nats", "margin of the first guess, nats"):
            at = seen(made, "lens", run="hops", layer=1, token=2, of=of, over=over)
            assert is_fine(at), texts(at)
            assert at.metric[0].value != "0"
            assert f"{of}, " in texts(at)


def test_readings_that_an_earlier_version_lacks_are_not_offered(
    tmp_path: Path, seen: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer_benchmark, "READINGS", list(READINGS)[:5])
    make_run(tmp_path / "old", n_taps=3, n_pos=4)
    at = seen(tmp_path, "lens", run="old", layer=1, token=2, of="entropy, nats")
    assert is_fine(at), texts(at)
    (box,) = (box for box in at.selectbox if box.label == "Reading")
    assert len(box.options) == 5


def test_the_live_page_keeps_the_menu_of_the_run_it_came_from(made: Path, seen: Draw) -> None:
    at = seen(made, "live", run="hops")
    assert is_fine(at)
    assert "hops" in texts(at)
    assert len(at.page_link) == len(entries())


def test_the_live_page_makes_a_run_of_what_is_typed(tmp_path: Path, seen: Draw) -> None:
    at = seen(tmp_path, "live")
    next(box for box in at.text_area).set_value(
        "Xena boss Tess . Bea heir Dan . Olga doctor friend"
    )
    at.pills[0].set_value(["logit_lens", "block_influence"])
    at.button[0].click().run(timeout=120)
    assert is_fine(at), texts(at)
    links = [link.label for link in at.page_link]
    assert any("Logit lens" in label and "KL" in label for label in links)
    assert not any("Layer skip" in label for label in links)
    (run,) = (tmp_path / "live").glob("*/run.json")
    assert is_fine(seen(tmp_path, "lens", run=f"live/{run.parent.name}", layer=1, token=2))


def test_the_live_page_says_what_it_cannot_use(tmp_path: Path, seen: Draw) -> None:
    at = seen(tmp_path, "live")
    at.button[0].click().run()
    assert "no prompt" in texts(at)
    at.text_area[0].set_value("words")
    at.pills[0].set_value([])
    at.button[0].click().run()
    assert "No analysis is chosen" in texts(at)
    at.pills[0].set_value(["logit_lens"])
    next(box for box in at.text_input if "folder" in box.label).set_value("no/such/model")
    at.button[0].click().run(timeout=60)
    assert not at.exception
    assert "no/such/model" in texts(at)


def test_a_run_folder_can_be_moved(made: Path, tmp_path: Path, seen: Draw) -> None:
    shutil.copytree(made / "hops", tmp_path / "else" / "where" / "deep")
    assert is_fine(seen(tmp_path, "lens", run="else/where/deep"))


def test_layers_that_were_not_erased_are_no_rows(tmp_path: Path) -> None:
    sparse = {"residual_erasure": {"every": 3}}
    execute(Study(("zoo/hops-4l",), ("two-hop",), sparse, n=4), tmp_path / "sparse")
    run = find_run(tmp_path, "sparse")
    model, task = run.models_and_tasks[0]
    prompts = run.prompts(model, task)
    here = Selected(run, Selection(run=run.id), model, task, prompts, ())
    module = entries()["erasure"].module
    one = module.grid(here, "")
    mean = module.grid(here.at(over="all"), "")
    assert one.rows == replace(mean.rows, name=one.rows.name)
    assert len(one.values) < 5
