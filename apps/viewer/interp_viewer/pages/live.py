"""The one page that loads a model: a prompt that is typed becomes a run like any other."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import streamlit as st

from interp.errors import ChangedError, InterpError
from interp.files.fetched import FETCHED, is_there
from interp.files.paths import shipped_models
from interp.files.whole import write_atomically
from interp.runs.folder import SCHEMA
from interp_viewer import menu
from interp_viewer.screen import begin, root_folder
from interp_viewer.selection import Selection
from interp_viewer.text import plain

TITLE = "Live (loads a model)"
FOLDER = "live"
QUICK = ("residual_contribution", "logit_lens", "void_detection", "layer_skip")
_LONGEST = 20_000


def page() -> None:
    """Draw the form, run what was asked, and link to it."""
    begin("live")
    st.warning(
        "This page loads a model and computes on this machine."
        " All other pages only read what is finished."
    )
    with st.form("live"):
        names = [*shipped_models(), *filter(is_there, FETCHED)]
        shipped = st.selectbox(
            "Shipped model",
            names,
            index=names.index("zoo/hops-4l") if "zoo/hops-4l" in names else 0,
        )
        own = st.text_input(
            "… or a folder, or a name on the hub that is on this machine",
            placeholder="e.g. ./my-model",
        )
        text = st.text_area("Prompt", max_chars=_LONGEST, placeholder="A text to be continued")
        answer = st.text_input("Answer that should follow (optional)")
        st.caption(
            "For relevance patching: the same text with something else in it,"
            " and what would be right then (optional)."
        )
        corrupted = st.text_input("Corrupted twin")
        wrong = st.text_input("Wrong answer")
        is_sent = st.form_submit_button("Compute")
    with st.expander("Prompts that the shipped models know"):
        st.code("\n".join(_examples()), language=None)
    if is_sent:
        _compute(own.strip() or shipped, text, answer.strip(), corrupted, wrong.strip())


def _examples() -> list[str]:
    """Return a prompt of every built-in task that a shipped model was trained on."""
    from interp.files.paths import shipped_tasks

    examples = []
    for name, path in shipped_tasks().items():
        with path.open(encoding="utf-8") as file:
            row = json.loads(file.readline())
        examples.append(f"{name}: {row.get('text', '')} → {row.get('answer', '')}")
    return examples


def _compute(model: str, text: str, answer: str, corrupted: str, wrong: str) -> None:
    if not text.strip():
        st.error("There is no prompt; type one.")
        return
    given = {
        "id": "typed",
        "text": text,
        "answer": answer,
        "corrupted": corrupted.strip(),
        "wrong": wrong,
    }
    prompt = {name: value for name, value in given.items() if value}
    key = hashlib.blake2b(
        json.dumps([SCHEMA, model, prompt], sort_keys=True).encode(), digest_size=6
    ).hexdigest()
    root = root_folder()
    out = root / FOLDER / key
    began = time.monotonic()
    try:
        done = _run(model, prompt, out, root)
    except (InterpError, OSError) as error:
        st.error(plain(error))
        return
    _report(done, out, key, time.monotonic() - began)


def _run(model: str, prompt: dict[str, str], out: Path, root: Path) -> dict[str, Any]:
    """Run the quick analyses on a prompt; finished results for it and the model are reused."""
    with st.status("Loading the library and the model", expanded=False) as status:
        import transformers

        from interp.runs import Study, execute

        transformers.utils.logging.disable_progress_bar()
        task = out.parent / f"{out.name}.jsonl"
        write_atomically(task, json.dumps(prompt, ensure_ascii=False) + "\n")
        analyses: dict[str, dict[str, Any]] = {name: {} for name in QUICK}
        if {"answer", "wrong", "corrupted"} <= prompt.keys():
            analyses["relevance_patching"] = {}
        study = Study((model,), (str(task),), analyses, only_fitting=True)
        how = {
            "store": str(root / "store"),
            "progress": lambda standing: status.update(label=standing.doing),
        }
        try:
            done = execute(study, out, **how)
        except ChangedError:  # the model is another one now
            shutil.rmtree(out)
            done = execute(study, out, **how)
        status.update(label="Done", state="complete")
    return done


def _report(done: dict[str, Any], out: Path, key: str, seconds: float) -> None:
    for path, cell in done["cells"].items():
        if cell["status"] == "ok":
            st.markdown(f"**{plain(cell['analysis'])}** {plain(cell['summary'])}")
        else:
            st.info(f"{plain(path)} {cell['status']}: {plain(cell['error'])}")
    if not any(cell["analysis"] == "relevance_patching" for cell in done["cells"].values()):
        st.caption("For relevance, fill in the answer, the corrupted twin and the wrong answer.")
    st.caption(f"{seconds:.1f} s; kept in {plain(out)}")
    params = Selection(run=f"{FOLDER}/{key}").params()
    for name in ("lens", "residual", "voids", "skip", "circuit"):
        if any(
            cell["analysis"] in menu.entries()[name].analyses and cell["status"] == "ok"
            for cell in done["cells"].values()
        ):
            st.page_link(
                menu.entries()[name].page,
                label=f"Open {menu.entries()[name].title}",
                query_params=params,
            )
