"""What a run found, where to look at it, and where it comes from."""

from pathlib import PurePosixPath

import streamlit as st

from interp.runs.folder import Cell
from interp.runs.questions import Declared, declared_in_files
from interp.runs.viewing import ANY
from interp_viewer import menu
from interp_viewer.claims import draw_findings
from interp_viewer.selected import Selected
from interp_viewer.text import plain

TITLE = "Overview"


def page(here: Selected) -> None:
    """Draw findings, prompt, what failed, and provenance."""
    if here.prompts:
        prompt = here.prompts[here.ex]
        with st.expander(f"Prompt {here.ex} of {len(here.prompts)}"):
            st.text(prompt.get("text", ""))
            st.json(
                {name: value for name, value in prompt.items() if name != "text" and value},
                expanded=False,
            )
    st.subheader("Findings")
    known = declared_in_files()
    ranks = {cell: known.get(cell.analysis, Declared).rank for cell in here.cells}
    for cell in sorted(ranks, key=ranks.__getitem__):
        if here.info(cell)["status"] == "ok":
            _findings(here, cell, here.info(cell))
    others = [(cell, info) for cell, info in here.cells.items() if info["status"] != "ok"]
    if others:
        st.subheader("Not there")
    for cell, info in others:
        say = st.error if info["status"] == "failed" else st.info
        say(
            f"{plain(PurePosixPath(cell.path).name)} {info['status']}:"
            f" {plain(info.get('error', ''))}"
        )
    _provenance(here)


def _findings(here: Selected, cell: Cell, info: dict) -> None:
    name = PurePosixPath(cell.path).name
    with st.container(border=True):
        text, link = st.columns([0.85, 0.15], vertical_alignment="center")
        with text:
            st.markdown(f"{plain(name)} · {plain(info.get('question', ''))}")
            draw_findings(info)
            if info.get("left_out"):
                st.caption(plain(f"left out: {info['left_out']}"))
        entry = menu.entry_of(cell.analysis)
        changes = {"label": cell.label, "of": name if entry.name == ANY else "", "over": ""}
        params = here.selection.moved(model=here.model, task=here.task, **changes).params()
        link.page_link(entry.page, label="Open →", query_params=params)


def _provenance(here: Selected) -> None:
    st.subheader("Where it comes from")
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
    st.dataframe(
        {"what": list(rows), "value": [str(value) for value in rows.values()]},
        hide_index=True,
        height="content",
    )
    with st.expander("run.json"):
        st.json(info, expanded=1)
