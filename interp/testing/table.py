"""What can be read and written in a family, as a line of the documentation's table."""

from collections.abc import Mapping

from interp.sites import KINDS
from interp.testing import Examination

MARKS = {("ok", "ok"): "rw", ("ok", "refused"): "r", ("refused", "refused"): "–"}


def row(family: str, examination: Examination) -> str:
    """Return one line of a Markdown table: equal passes, then what each kind of site allows."""
    passes = [check for check in examination.checks if check.aspect == "pass"]
    n_equal = sum(check.status == "ok" for check in passes)
    marks = [
        MARKS.get(
            (examination.status(kind, "read").status, examination.status(kind, "write").status),
            "wrong",
        )
        for kind in KINDS
    ]
    return f"| `{family}` | {n_equal}/{len(passes)} | {' | '.join(marks)} |"


def head() -> str:
    """Return the first two lines of the table."""
    columns = ["family", "passes", *(f"`{kind}`" for kind in KINDS)]
    return f"| {' | '.join(columns)} |\n|{'|'.join([' --- '] * len(columns))}|"


def causes(examinations: Mapping[str, Examination]) -> list[str]:
    """Return why something is refused, one line for each cause: what, and in which families."""
    families: dict[tuple[str, str], list[str]] = {}
    for family, examination in examinations.items():
        by_cause: dict[str, list[str]] = {}
        for check in examination.refused:
            aspects = by_cause.setdefault(_cause(check.why), [])
            aspects.append(f"{check.check} (edits)" if check.aspect == "write" else check.check)
        for cause, what in by_cause.items():
            named = [
                item
                for item in what
                if item.removesuffix(" (edits)") not in what or " " not in item
            ]
            families.setdefault((", ".join(named), cause), []).append(family)
    return [
        f"- {what}: {cause} ({', '.join(f'`{name}`' for name in names)})"
        for (what, cause), names in families.items()
    ]


def _cause(why: str) -> str:
    """Return a refusal without the name of the place: the same text in every layer."""
    return why.partition(": ")[2] or why
