"""What a run found, layer by layer and claim by claim, and where it comes from."""

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from interp.runs.at_a_glance import glance
from interp.runs.evidence import evidence, findings_of
from interp.runs.folder import Cell
from interp.runs.questions import Declared, declared_in_files
from interp.runs.viewing import ANY
from interp_viewer import menu
from interp_viewer.lines import draw_figure
from interp_viewer.selected import Selected
from interp_viewer.text import plain

TITLE = "Overview"
_STRIP = 122  # pixels: eight lines of words


def page(here: Selected) -> None:
    """Draw all layers at a glance, findings, what failed, and provenance."""
    known = declared_in_files()
    ranks = {cell: known.get(cell.analysis, Declared).rank for cell in here.cells}
    finished = [
        cell for cell in sorted(ranks, key=ranks.__getitem__) if here.info(cell)["status"] == "ok"
    ]
    _glance(here, finished)
    for cell in finished:
        _findings(here, cell)
    for cell, info in here.cells.items():
        if info["status"] != "ok":
            say = st.error if info["status"] == "failed" else st.info
            name = plain(PurePosixPath(cell.path).name)
            say(f"{name} {info['status']}: {plain(info.get('error', ''))}")
    _provenance(here)


def _glance(here: Selected, finished: list[Cell]) -> None:
    sections = [
        cell.names | {"cell": cell, "findings": findings_of(here.info(cell))} for cell in finished
    ]
    figure = glance(
        here.run.folder,
        {"analyses": sections, "provenance": {"models": here.run.info["models"]}},
        link_of=lambda section: _address(here, section["cell"]),
        read=here.run.frame,
    )
    if figure is not None:
        n_strips = sum(1 for _ in figure.select_yaxes())
        figure.update_layout(title_text="", margin_t=8, height=60 + _STRIP * n_strips)
        draw_figure(figure, key="glance", alt="All layers at a glance; the findings stand below")
        st.caption(plain(figure.layout.meta["about"]))


def _params(here: Selected, cell: Cell) -> dict[str, str]:
    """Return what a link to a cell's page selects."""
    of = PurePosixPath(cell.path).name if menu.entry_of(cell.analysis).name == ANY else ""
    changes = {"label": cell.label, "of": of, "over": ""}
    return here.selection.moved(model=here.model, task=here.task, **changes).params()


def _address(here: Selected, cell: Cell) -> str:
    return f"{menu.entry_of(cell.analysis).name}?{urlencode(_params(here, cell))}"


def _findings(here: Selected, cell: Cell) -> None:
    """Draw a line for each finding; opened, it has the numbers that the claim rests on."""
    info, entry = here.info(cell), menu.entry_of(cell.analysis)
    name = PurePosixPath(cell.path).name
    label = f"**{plain(name)}** · {plain(info.get('question', ''))} →"
    st.page_link(entry.page, label=label, query_params=_params(here, cell))
    for finding in findings_of(info):
        with st.expander(plain(finding["claim"])):
            _numbers(finding)
            if info.get("left_out"):
                st.caption(plain(f"left out: {info['left_out']}"))


def _numbers(finding: dict[str, Any]) -> None:
    numbers = evidence(finding)
    st.caption("  \n".join(plain(number) for number in numbers) or "No number was recorded.")


def _provenance(here: Selected) -> None:
    info = here.run.info
    model, task = info["models"].get(here.model, {}), info["tasks"].get(here.task, {})
    rows = {
        "run": here.run.id,
        "folder": str(here.run.folder),
        "started": info["started"],
        "machine": info.get("machine"),
        **{f"version of {name}": version for name, version in info["versions"].items()},
        **{f"{here.model}: {name}": value for name, value in model.items()},
        **{f"{here.task}: {name}": value for name, value in task.items()},
        "prompts of each task": info["config"].get("n") or "all",
        "seed": info["config"].get("seed"),
    }
    with st.expander("Where it comes from"):
        st.dataframe(
            {"what": list(rows), "value": [str(value) for value in rows.values()]},
            hide_index=True,
            height="content",
        )
        st.json(info, expanded=False)
    if here.prompts:
        with st.expander("The selected prompt"):
            prompt = here.prompts[here.ex]
            st.text(prompt.get("text", ""))
            rest = {name: value for name, value in prompt.items() if name != "text" and value}
            st.json(rest, expanded=False)
