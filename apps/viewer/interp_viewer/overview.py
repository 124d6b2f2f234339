"""What a run found, in its own words, where to look at it, and where it comes from."""

from pathlib import PurePosixPath

import streamlit as st

from interp.runs.folder import Cell
from interp_viewer import menu
from interp_viewer.screen import Here
from interp_viewer.text import number, plain


def page(here: Here) -> None:
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
    for cell, info in here.cells.items():
        if info["status"] == "ok":
            _finding(here, cell, info)
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


def _finding(here: Here, cell: Cell, info: dict) -> None:
    name = PurePosixPath(cell.path).name
    with st.container(border=True):
        text, link = st.columns([0.85, 0.15], vertical_alignment="center")
        left_out = f" ({info['left_out']} left out)" if info.get("left_out") else ""
        text.markdown(
            f"**{plain(name)}** · {plain(info.get('question', ''))}\n\n{_numbers(info)}"
            f"{plain(info.get('summary', ''))}{plain(left_out)}"
        )
        target = menu.PAGE_OF.get(cell.analysis, "analysis")
        changes = {"label": cell.label, "of": "" if target != "analysis" else name, "over": ""}
        params = here.selection.moved(model=here.model, task=here.task, **changes).params()
        link.page_link(menu.BY_NAME[target].page, label="Open →", query_params=params)


def _numbers(info: dict) -> str:
    """Return the finding's number with its interval, where it has one, as a paragraph."""
    first = (info.get("findings") or [{}])[0]
    if first.get("value") is None:
        return ""
    has_interval = first.get("low") is not None and first.get("high") is not None
    interval = (
        f", 95 % interval {number(first['low'])} to {number(first['high'])}" if has_interval else ""
    )
    measure = plain(first.get("measure", ""))
    return f"{measure[:1].upper()}{measure[1:]}: **{number(first['value'])}**{interval}\n\n"


def _provenance(here: Here) -> None:
    st.subheader("Where it comes from")
    info = here.run.info
    rows = {
        "run": here.run.id, "folder": str(here.run.folder), "started": info["started"], "machine": info.get("machine"),
        **{f"version of {name}": version for name, version in info["versions"].items()},
        **{f"{here.model}: {name}": value for name, value in info["models"].get(here.model, {}).items()},
        **{f"{here.task}: {name}": value for name, value in info["tasks"].get(here.task, {}).items()},
        "prompts of each task": info["config"].get("n") or "all", "seed": info["config"].get("seed"),
    }  # fmt: skip
    st.dataframe(
        {"what": list(rows), "value": [str(value) for value in rows.values()]},
        hide_index=True,
        height="content",
    )
    with st.expander("run.json"):
        st.json(info, expanded=1)
