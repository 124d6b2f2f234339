"""All runs below the folder, from their headers alone."""

import shlex
from datetime import UTC, datetime

import pandas as pd
import streamlit as st

from interp_viewer import menu
from interp_viewer.listing import RunSummary, summaries
from interp_viewer.screen import begin, root_folder
from interp_viewer.selection import Selection
from interp_viewer.text import plain

TITLE = "Runs"
COMMAND = "interp run --model zoo/hops-4l --task two-hop --n 32 --out {}"


def page() -> None:
    """Draw the list, and open what is chosen from it."""
    begin("runs")
    root = root_folder()
    if not root.is_dir():
        st.error(plain(f"no folder {root}"))
        _how(root)
        return
    found = summaries(root)
    if not found:
        st.info(plain(f"There is no run in {root} yet."))
        _how(root)
        return
    words = (
        st.text_input("Find", placeholder="part of a name, model, task or analysis").lower().split()
    )
    shown = [header for header in found if all(word in _searched(header) for word in words)]
    st.caption(
        f"{len(shown)} of {len(found)} runs in {plain(root)}. Tick one to open it, two to compare"
        " them."
    )
    picked = st.dataframe(
        _table(shown),
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        key="runs-table",
        height=min(600, 35 * (len(shown) + 1) + 3),
    )
    chosen = [shown[i] for i in picked.selection["rows"] if i < len(shown)]
    names = [header.id for header in shown if not header.error]
    name = st.selectbox("Open", names, index=None, placeholder="or choose one here")
    if name is not None:
        chosen = [header for header in shown if header.id == name]
    _links(chosen)
    for header in shown:
        if header.error:
            st.error(f"{plain(header.id)}: {plain(header.error)}")


def _links(chosen: list[RunSummary]) -> None:
    readable = [header for header in chosen if not header.error]
    for header in readable[:2]:
        params = Selection(run=header.id).params()
        st.page_link(
            menu.entries()["overview"].page, label=f"Open {plain(header.id)}", query_params=params
        )
    if len(readable) >= 2:
        params = Selection(run=readable[0].id, cmp=readable[1].id).params()
        label = f"Compare {plain(readable[0].id)} with {plain(readable[1].id)}"
        st.page_link(menu.entries()["compare"].page, label=label, query_params=params)


def _how(root: object) -> None:
    st.markdown("This makes one, in a minute or two; this page shows it when it is reloaded:")
    st.code(COMMAND.format(shlex.quote(f"{root}/first")), language="bash")


def _searched(header: RunSummary) -> str:
    return " ".join(
        (header.id, *header.models, *header.tasks, *header.analyses, header.status)
    ).lower()


def _table(shown: list[RunSummary]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": header.id,
            "status": header.status,
            "models": ", ".join(header.models),
            "tasks": ", ".join(header.tasks),
            "analyses": len(header.analyses),
            "prompts": header.n_prompts,
            "started": header.started,
            "last written": (
                datetime.fromtimestamp(header.written, UTC).isoformat(timespec="seconds")
                if header.written
                else ""
            ),
        }
        for header in shown
    )
