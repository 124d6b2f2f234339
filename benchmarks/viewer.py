"""The viewer's budgets in a real browser: cold and warm pages, a click to its number, 500 runs.

Medians over repeats, in seconds; the runs are made of random numbers. Needs Chromium. Each click
moves the selection to another cell; it has arrived when the inspector names that cell. Beside them,
an empty page of Streamlit, and a click that writes one line: what no page can go below.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from interp.analyses.logit_lens import LogitLens
from interp.files.whole import write_atomically, write_json
from interp.runs.execution import write_result
from interp.runs.folder import SCHEMA, Cell, folder_name, task_path
from interp.runs.parts import pack, write_part
from interp.runs.viewing import start
from interp.sweeps.lens import READINGS

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
MODEL, TASK = "random", "words"
_REPEATS = 5
_AT_REST = 1.5  # seconds, after which nothing is drawn any more
_BARE = """
import streamlit as st
st.button("go", on_click=lambda: st.session_state.update(n=st.session_state.get("n", 0) + 1))
st.markdown(f"pressed {st.session_state.get('n', 0)}")
"""
_VIEWER = Path(__file__).parents[1] / "apps" / "viewer"


def make_run(folder: Path, *, n_taps: int, n_pos: int, n_prompts: int = 4) -> None:
    """Write a run of a logit lens with random readings."""
    generator = torch.Generator().manual_seed(0)
    readings = torch.rand(n_prompts, n_taps, n_pos, len(READINGS), generator=generator)
    part = {
        "readings": readings,
        "top": torch.randint(
            0, 100, (n_prompts, n_taps, n_pos, 5), generator=generator, dtype=torch.int32
        ),
        "cosines": torch.rand(n_prompts, n_taps - 1, 3, generator=generator) - 0.5,
    }
    cell, analysis = Cell(MODEL, TASK, "logit_lens"), LogitLens()
    write_part(folder / cell.path / "parts" / "00000.safetensors", pack(part, "made"))
    status = {
        "status": "ok",
        "parameters": asdict(analysis),
        "question": analysis.question,
        "n_prompts": n_prompts,
        "n_shards": 1,
        "left_out": "",
        "summary": "made of random numbers",
        "seconds": 0.0,
        "forwards_per_prompt": 0.0,
        "peak_memory_mb": 0,
    }
    write_result(analysis.combine([part]), folder / cell.path, status)
    of_task = folder / task_path(MODEL, TASK)
    write_atomically(
        of_task / "prompts.jsonl",
        "".join(f'{{"id": "p{i}", "text": "random"}}\n' for i in range(n_prompts)),
    )
    write_json(
        of_task / "tokens.json",
        {"tokens": torch.randint(0, 100, (n_prompts, n_pos), generator=generator).tolist()},
    )
    write_json(
        folder / folder_name(MODEL) / "vocabulary.json",
        {"vocabulary": [f" w{i}" for i in range(100)]},
    )
    write_json(
        folder / "run.json",
        header(n_layers=n_taps - 1) | {"cells": {cell.path: cell.names | status}},
    )


def header(*, n_layers: int) -> dict[str, Any]:
    """Return what run.json says of a run but for its cells."""
    config = {
        "models": [MODEL],
        "tasks": [TASK],
        "analyses": {"logit_lens": {}},
        "n": None,
        "seed": 0,
    }
    known = {
        "fingerprint": "made",
        "layers": n_layers,
        "d_model": 8,
        "d_vocab": 100,
        "dtype": "float32",
        "device": "cpu",
    }
    return {
        "schema": SCHEMA,
        "config": config,
        "started": "2026-01-01T00:00:00+00:00",
        "versions": {},
        "machine": "made",
        "models": {MODEL: known},
        "tasks": {TASK: {"prompts": 4, "hash": "made"}},
    }


def _painted(page: Any) -> None:
    """Wait until the picture is drawn: before that, a canvas has its initial height."""
    canvas = page.locator(".heat canvas").first
    canvas.wait_for(state="visible")
    while not canvas.evaluate("canvas => canvas.style.height !== ''"):
        time.sleep(0.01)


def first_paint(browser: Any, root: Path, run: str) -> float:
    """Return the seconds from opening an address of a fresh server to the picture."""
    with start(root) as viewer:
        page = browser.new_context().new_page()
        began = time.perf_counter()
        page.goto(f"{viewer.url}lens?run={run}")
        _painted(page)
        return time.perf_counter() - began


def warm(browser: Any, root: Path, run: str) -> float:
    """Return the median seconds from opening an address, known to the server, to the picture."""
    seconds = []
    with start(root) as viewer:
        page = browser.new_context().new_page()
        for token in range(_REPEATS + 1):
            began = time.perf_counter()
            page.goto(f"{viewer.url}lens?run={run}&layer=0&token={token}")
            _painted(page)
            seconds.append(time.perf_counter() - began)
            time.sleep(_AT_REST)
    return statistics.median(seconds[1:])


def bare(browser: Any, folder: Path) -> tuple[float, float]:
    """Return the median seconds of an empty page of a warm server, and of a click on it."""
    script, port = folder / "bare.py", 8899
    script.write_text(_BARE, encoding="utf-8")
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.headless", "true"]
    server = subprocess.Popen(
        [*command, "--server.port", str(port), "--browser.gatherUsageStats", "false"],
        stdout=subprocess.DEVNULL,
    )
    try:
        page, loads, presses = browser.new_context().new_page(), [], []
        for _ in range(_REPEATS + 1):
            time.sleep(_AT_REST)
            began = time.perf_counter()
            while True:
                try:
                    page.goto(f"http://localhost:{port}/")
                    break
                except Exception:  # it is not up yet
                    time.sleep(0.2)
            page.get_by_text("pressed 0").wait_for()
            loads.append(time.perf_counter() - began)
        for i in range(1, 10):
            began = time.perf_counter()
            page.get_by_role("button", name="go").click()
            page.get_by_text(f"pressed {i}", exact=True).wait_for()
            presses.append(time.perf_counter() - began)
    finally:
        server.terminate()
        server.wait()
    return statistics.median(loads[1:]), statistics.median(presses[2:])


def report(browser: Any, path: Path) -> float:
    """Return the median seconds from opening a report to its first figure and a page that reacts.

    It reacts when it has drawn two more frames.
    """
    seconds = []
    for _ in range(_REPEATS):
        page = browser.new_context(viewport={"width": 1300, "height": 900}).new_page()
        began = time.perf_counter()
        page.goto(path.resolve().as_uri(), wait_until="commit")
        page.locator("#figure-depth-at-a-glance .main-svg").first.wait_for()
        page.evaluate("new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))")
        seconds.append(time.perf_counter() - began)
        page.context.close()
    return statistics.median(seconds)


def clicks(browser: Any, root: Path, run: str, *, n_layers: int, n: int = 9) -> float:
    """Return the median seconds from a click on a cell to the inspector that names it."""
    with start(root) as viewer:
        page = browser.new_context(viewport={"width": 1400, "height": 1400}).new_page()
        page.goto(f"{viewer.url}lens?run={run}&layer=0&token=0")
        _painted(page)
        named, seconds = page.get_by_test_id("stMarkdown"), []
        named.filter(has_text="before layer 0, token 0").wait_for()
        canvas = page.locator(".heat canvas").first
        cells = json.loads(canvas.get_attribute("data-cells"))
        for layer in range(3, 3 + 4 * n, 4):
            y = cells["top"] + (n_layers - layer + 0.5) * cells["height"]
            began = time.perf_counter()
            canvas.click(position={"x": cells["left"] + 1, "y": y})
            named.filter(has_text=f"before layer {layer}, token").wait_for()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def listing(root: Path) -> float:
    """Return the seconds of reading the headers of all runs, nothing cached."""
    program = (
        "import sys, time, pathlib; sys.path.insert(0, sys.argv[1]); from interp_viewer.listing"
        " import summaries; began = time.perf_counter(); summaries(pathlib.Path(sys.argv[2]));"
        " print(time.perf_counter() - began)"
    )
    command = [sys.executable, "-c", program, str(_VIEWER), str(root)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True
    )
    return float(done.stdout)


def run() -> dict[str, Any]:
    """Return medians in seconds beside their budgets."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        root = Path(name) / "sizes"
        for label, (n_taps, n_pos) in {"middle": (49, 512), "large": (80, 1024)}.items():
            make_run(root / label, n_taps=n_taps, n_pos=n_pos)
        many = Path(name) / "many"
        make_run(many / "run000", n_taps=5, n_pos=8)
        for i in range(1, 500):
            shutil.copytree(many / "run000", many / f"run{i:03d}")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        measured = {
            "first paint of a cold server, 25,088 cells": (
                statistics.median(first_paint(browser, root, "middle") for _ in range(_REPEATS)),
                4.0,
            ),
            "page of a warm server, 25,088 cells": (warm(browser, root, "middle"), 1.0),
            "click to inspector, 25,088 cells": (clicks(browser, root, "middle", n_layers=48), 0.3),
            "click to inspector, 81,920 cells": (clicks(browser, root, "large", n_layers=79), 1.2),
            "list of 500 runs": (statistics.median(listing(many) for _ in range(_REPEATS)), 1.0),
        }
        page, press = bare(browser, Path(name))
        browser.close()
    least = {"page of a warm server, empty": page, "click on an empty page": press}
    return {
        what: {"seconds": round(seconds, 3), "goal": budget}
        for what, (seconds, budget) in measured.items()
    } | {what: {"seconds": round(seconds, 3)} for what, seconds in least.items()}
