"""Measure how far half precision moves every analysis, or those named, in docs/precision.md."""

import sys
import warnings
from pathlib import Path

import pandas as pd

root = Path(__file__).parent.parent
sys.path.insert(0, str(root))

from interp.runs.registry import make_analysis  # noqa: E402
from tests.test_contract import ANALYSES, LESS, model, task  # noqa: E402

PAGE, START = root / "docs" / "precision.md", "| analysis |"
NUMBERS, KINDS = (
    ("mean", "value", "rate", "usage", "accuracy", "median", "layer"),
    ("measure", "statistic", "score", "method", "kind", "target"),
)

# the one needs a second model, the other takes long
GIVEN = {name: LESS[name] for name in ("checkpoint_stitch", "layer_routers")}
NOISE = 1e-5  # nats, or a share


def numbers(name: str, dtype: str) -> pd.DataFrame:
    """Return an analysis' main number by what it measures."""
    frame = make_analysis(name, GIVEN.get(name, {})).run(model(name, dtype), task(name)).to_frame()
    column = next(each for each in NUMBERS if each in frame.select_dtypes("number"))
    kinds = [each for each in KINDS if each in frame]
    what = (
        frame[kinds].fillna("").astype(str).agg(", ".join, axis=1)
        if kinds
        else pd.Series(column, index=frame.index)
    )
    keys = (
        frame[
            [each for each in frame if each not in frame.select_dtypes("float") and each != column]
        ]
        .astype(object)
        .fillna("")
        .astype(str)
    )
    keys["again"] = (
        keys.groupby([*keys], dropna=False).cumcount() if len(keys.columns) else range(len(keys))
    )
    values = pd.DataFrame({"measured": what, "number": frame[column].astype(float).fillna(0)})
    return values.set_index(pd.MultiIndex.from_frame(keys))


def moved(wide: pd.DataFrame, low: pd.DataFrame) -> tuple[float, str]:
    """Return the largest change, as a share of the largest number of its kind, and its kind.

    A kind in which there is nothing but rounding is measured by the largest number of all.
    """
    shares, largest = {}, wide["number"].abs().max()
    for what, rows in wide.groupby("measured"):
        size = rows["number"].abs().max()
        size = largest if size < NOISE else size
        change = (
            (low["number"].reindex(rows.index) - rows["number"]).abs().max()
        )  # of the edges that both show
        shares[what] = change / size if size else 0.0
    most = max(shares, key=lambda what: shares[what])
    return float(shares[most]), most


def line(name: str) -> str:
    """Return an analysis' row of the table."""
    wide, cells = numbers(name, "float32"), []
    for dtype in ("bfloat16", "float16"):
        low = numbers(name, dtype)
        share, what = moved(wide, low)
        cells.append(
            f"{share:.1%} ({what.strip(', ').replace('|', chr(92) + '|')})" if share else "0"
        )
    return f"| {name} | {' | '.join(cells)} |"


def rows(text: str) -> dict[str, str]:
    """Return the page's rows by analysis."""
    lines = text[text.index(START) :].splitlines()[2:]
    return {each.split("|")[1].strip(): each for each in lines}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    text = PAGE.read_text()
    known = rows(text) | {name: line(name) for name in sys.argv[1:] or ANALYSES}
    head = ["| analysis | bfloat16 | float16 |", "| --- | --- | --- |"]
    table = [*head, *(known[name] for name in ANALYSES if name in known)]
    PAGE.write_text(text[: text.index(START)] + "\n".join(table) + "\n")
