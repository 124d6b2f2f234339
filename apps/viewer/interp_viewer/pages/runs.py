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
    known = summaries(root)
    if not known:
        st.info(plain(f"There is no run in {root} yet."))
        _how(root)
        return
    words = (
        st.text_input("Find", placeholder="part of a name, model, task or analysis").lower().split()
    )
    shown = [summary for summary in known if all(word in _searched(summary) for word in words)]
    st.caption(
        f"{len(shown)} of {len(known)} runs in {plain(root)}."
        " Tick one to open it, two to compare them."
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
    names = [summary.id for summary in shown if not summary.error]
    name = st.selectbox("Open", names, index=None, placeholder="or choose one here")
    if name is not None:
        chosen = [summary for summary in shown if summary.id == name]
    _links(chosen)
    for summary in shown:
        if summary.error:
            st.error(f"{plain(summary.id)}: {plain(summary.error)}")


def _links(chosen: list[RunSummary]) -> None:
    readable = [summary for summary in chosen if not summary.error]
    for summary in readable[:2]:
        params = Selection(run=summary.id).params()
        st.page_link(
            menu.entries()["overview"].page, label=f"Open {plain(summary.id)}", query_params=params
        )
    if len(readable) >= 2:
        params = Selection(run=readable[0].id, cmp=readable[1].id).params()
        label = f"Compare {plain(readable[0].id)} with {plain(readable[1].id)}"
        st.page_link(menu.entries()["compare"].page, label=label, query_params=params)


def _how(root: object) -> None:
    st.markdown("This makes one, in a minute or two; this page shows it when it is reloaded:")
    st.code(COMMAND.format(shlex.quote(f"{root}/first")), language=None)


def _searched(summary: RunSummary) -> str:
    return " ".join(
        (summary.id, *summary.models, *summary.tasks, *summary.analyses, summary.status)
    ).lower()


def _table(shown: list[RunSummary]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": summary.id,
            "status": summary.status,
            "models": ", ".join(summary.models),
            "tasks": ", ".join(summary.tasks),
            "analyses": len(summary.analyses),
            "prompts": summary.n_prompts,
            "started": summary.started,
            "last written": (
                datetime.fromtimestamp(summary.written, UTC).isoformat(timespec="seconds")
                if summary.written
                else ""
            ),
        }
        for summary in shown
    )
