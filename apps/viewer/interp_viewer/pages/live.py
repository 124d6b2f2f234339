"""The one page that loads a model: a prompt that is typed becomes a run like any other."""

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import streamlit as st

from interp.errors import ChangedError, InterpError
from interp.files.fetched import FETCHED, is_there
from interp.files.paths import shipped_models
from interp.files.whole import write_atomically
from interp.runs.evidence import findings_of
from interp.runs.folder import SCHEMA
from interp.runs.questions import declared_in_files
from interp.runs.viewing import ANY
from interp_viewer import menu
from interp_viewer.screen import begin, root_folder
from interp_viewer.selection import Selection
from interp_viewer.text import plain, shortened

TITLE = "Live (loads a model)"
FOLDER = "live"
_DEFAULT, _LAST = "zoo/hops-4l", "live-last"
QUICK = ("residual_contribution", "logit_lens", "void_detection", "layer_skip")
_LONGEST = 20_000


@dataclass(frozen=True)
class Asked:
    """A model, a prompt as tasks have it, and the analyses to run."""

    model: str
    prompt: dict[str, str]
    analyses: tuple[str, ...]

    @property
    def run(self) -> str:
        """Return the name of the run that answers it: the same for the same."""
        what = json.dumps([SCHEMA, self.model, self.prompt, sorted(self.analyses)], sort_keys=True)
        return f"{FOLDER}/{hashlib.blake2b(what.encode(), digest_size=6).hexdigest()}"


@dataclass(frozen=True)
class Done:
    """What came of it, by the folders of its cells, and how long that took."""

    asked: Asked
    cells: dict[str, dict[str, Any]]
    seconds: float


def page() -> None:
    """Draw the form below what it computed last."""
    begin("live")
    result = st.container()
    with st.form("live"):
        asked = _form()
        is_sent = st.form_submit_button("Compute", type="primary")
    with st.expander("Prompts that the shipped models know"):
        st.code("\n".join(_examples()), language=None)
    with result:
        if is_sent:
            _compute(asked)
        if _LAST in st.session_state:
            _report(st.session_state[_LAST])


def _form() -> Asked:
    """Draw what can be asked, and return what is."""
    st.caption("This page loads a model and computes on this machine; all others only read.")
    left, right = st.columns([0.6, 0.4])
    with left:
        text = st.text_area(
            "Prompt", max_chars=_LONGEST, placeholder="A text to be continued", height=110
        )
        answer = st.text_input("Answer that should follow (optional)")
    names = [*shipped_models(), *filter(is_there, FETCHED)]
    with right:
        at = names.index(_DEFAULT) if _DEFAULT in names else 0
        shipped = st.selectbox("Shipped model", names, index=at)
        own = st.text_input(
            "… or a folder, or a name on the hub that is on this machine",
            placeholder="e.g. ./my-model",
        )
    with left:
        corrupted = st.text_input("Corrupted twin: the same text with something else in it")
    with right:
        wrong = st.text_input("Wrong answer: what would be right then")
    known = sorted(declared_in_files().items(), key=lambda item: (item[1].rank, item[0]))
    chosen = st.pills(
        "Analyses (those that patch need a twin and both answers)",
        [name for name, _ in known],
        selection_mode="multi",
        default=QUICK,
        key="live-analyses",
    )
    given = {
        "id": "typed",
        "text": text,
        "answer": answer.strip(),
        "corrupted": corrupted.strip(),
        "wrong": wrong.strip(),
    }
    prompt = {name: value for name, value in given.items() if value}
    return Asked(own.strip() or shipped, prompt, tuple(chosen))


def _examples() -> list[str]:
    """Return a prompt of every built-in task that a shipped model was trained on."""
    from interp.files.paths import shipped_tasks

    examples = []
    for name, path in shipped_tasks().items():
        with path.open(encoding="utf-8") as file:
            row = json.loads(file.readline())
        examples.append(f"{name}: {row.get('text', '')} → {row.get('answer', '')}")
    return examples


def _compute(asked: Asked) -> None:
    """Run what is asked, and keep what is to be shown of it."""
    st.session_state.pop(_LAST, None)
    if not asked.prompt.get("text", "").strip():
        st.error("There is no prompt; type one.")
        return
    if not asked.analyses:
        st.error("No analysis is chosen; choose one.")
        return
    root = root_folder()
    began = time.monotonic()
    try:
        done = _run(asked, root)
    except (InterpError, OSError) as error:
        st.error(plain(error))
        return
    st.session_state[_LAST] = Done(asked, done["cells"], time.monotonic() - began)


def _run(asked: Asked, root: Path) -> dict[str, Any]:
    """Run analyses of a prompt; finished results for it and the model are reused."""
    with st.empty(), st.status("Loading the library and the model", expanded=False) as status:
        import transformers

        from interp.runs import Study, execute

        transformers.utils.logging.disable_progress_bar()
        out = root / asked.run
        task = out.parent / f"{out.name}.jsonl"
        write_atomically(task, json.dumps(asked.prompt, ensure_ascii=False) + "\n")
        analyses: dict[str, dict[str, Any]] = {name: {} for name in asked.analyses}
        study = Study((asked.model,), (str(task),), analyses, only_fitting=True)
        how = {
            "store": str(root / "store"),
            "progress": lambda standing: status.update(label=standing.doing),
        }
        try:
            done = execute(study, out, **how)
        except ChangedError:  # the model is another one now
            shutil.rmtree(out)
            done = execute(study, out, **how)
    return done


def _report(done: Done) -> None:
    """Draw a line for each analysis that was computed, which leads to its page."""
    asked = done.asked
    text = shortened(asked.prompt["text"])
    st.markdown(f"**{plain(asked.model)}** · {plain(text)} · {done.seconds:.1f} s")
    for path, cell in done.cells.items():
        if cell["status"] != "ok":
            st.info(f"{plain(PurePosixPath(path).name)} {cell['status']}: {plain(cell['error'])}")
            continue
        entry, claim = menu.entry_of(cell["analysis"]), findings_of(cell)[0]["claim"]
        of = PurePosixPath(path).name if entry.name == ANY else ""
        st.page_link(
            entry.page,
            label=f"**{plain(entry.title)}** · {plain(claim)} →",
            query_params=Selection(run=asked.run, of=of).params(),
        )
