"""The atlas's pages in Markdown: one table of all claims and models, and a page for each model."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from interp.atlas.asked import NOT_ASKED, Asked, asked_of, verdicts
from interp.atlas.claims import CONTROL_TOO, FAILS, HOLDS, UNDECIDED, Claim, Verdict
from interp.errors import RunError
from interp.figures.export import export
from interp.figures.words import called, counted
from interp.files.whole import write_atomically
from interp.runs.evidence import UNTRAINED, evidence
from interp.runs.folder import folder_name

_CLASSES = {HOLDS: "holds", FAILS: "fails", CONTROL_TOO: "control-too", UNDECIDED: "undecided"}
_WIDTH = "two-columns"
Row = tuple[Claim, list[Verdict]]


def write_atlas(folders: Sequence[Path], out: Path, *, has_pictures: bool = True) -> Iterator[Path]:
    """Write index.md, a page for each model of finished runs and its picture; yield their paths.

    Without `has_pictures`, those that are there stay.
    Raises RunError for a folder that is no run, before anything is written.
    """
    models = asked_of(folders)
    rows = list(verdicts(models))
    short = called(one.model for one in models)
    names = {one.model: _called(one, short[one.model]) for one in models}
    for i, one in enumerate(models):
        if has_pictures and (picture := _picture(one, out)):
            yield picture
        own = [(claim, each[i]) for claim, each in rows]
        has_picture = (out / f"{_file(one)}.png").exists()
        lines = _model_page(one, names[one.model], own, has_picture=has_picture)
        yield _written(out / f"{_file(one)}.md", lines)
    yield _written(out / "index.md", _index(models, names, rows))


def _written(path: Path, lines: Iterator[str]) -> Path:
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def _called(one: Asked, name: str) -> str:
    name = name.removeprefix("zoo/")
    return f"untrained {name.removesuffix(UNTRAINED)}" if one.is_untrained else name


def _file(one: Asked) -> str:
    return folder_name(one.model.removeprefix("zoo/"))


def _picture(one: Asked, out: Path) -> Path | None:
    """Draw depth at a glance of the run and task that say most of a model; None without any."""
    counts = Counter((run.folder, cell.task) for run in one.runs for cell in one.cells_of(run))
    runs = {run.folder: run for run in one.runs}
    for folder, task in sorted(counts, key=lambda pair: -counts[pair]):
        try:
            figure = runs[folder].plot(model=one.model, task=task)
        except RunError:
            continue
        out.mkdir(parents=True, exist_ok=True)
        return export(figure, out / f"{_file(one)}.png", width=_WIDTH)
    return None


def _index(models: Sequence[Asked], names: dict[str, str], rows: list[Row]) -> Iterator[str]:
    groups: dict[str, list[Row]] = {title: [] for title in _GROUPS}
    for row in rows:
        words = {(each.word, one.is_untrained) for each, one in zip(row[1], models, strict=True)}
        groups[_group(words)].append(row)
    n_trained = sum(not one.is_untrained for one in models)
    yield from (_TOP.format(n_models=n_trained, n_claims=len(rows)), "")
    yield from (_LEGEND, "")
    for title, about in _GROUPS.items():
        found = groups[title]
        if not found:
            continue
        yield from (f"## {title}", "", about.format(n=counted(len(found), "claim")), "")
        yield from _table(models, names, found)
    yield from _how(models)


_NEEDED = "What fails, or needs a control"
_HELD = "What holds wherever it can be decided"
_OPEN = "What none of these models decides"
_GROUPS = {
    _NEEDED: "{n}: a trained model says no, or a control or the untrained model does as much.",
    _HELD: "{n}.",
    _OPEN: "{n}.",
}


def _group(words: set[tuple[str, bool]]) -> str:
    """Return where a claim stands, from its words and whether each is of an untrained model."""
    if words & {(FAILS, False), (CONTROL_TOO, False), (HOLDS, True)}:
        return _NEEDED
    return _HELD if (HOLDS, False) in words else _OPEN


def _table(models: Sequence[Asked], names: dict[str, str], rows: list[Row]) -> Iterator[str]:
    heads = [f"[{names[one.model]}]({_file(one)}.md)" for one in models]
    yield "| claim | " + " | ".join(heads) + " |"
    yield "| --- |" + " --- |" * len(heads)
    for claim, found in rows:
        paper = f"[{claim.paper.name}](../{claim.paper.page})"
        yield f"| {_said(claim, paper)} | " + " | ".join(map(_short, found)) + " |"
    yield ""


def _short(verdict: Verdict) -> str:
    if verdict.word == NOT_ASKED:
        return "–"
    number = f"<br><small>{verdict.number}</small>" if verdict.number else ""
    return f"{_word(verdict)}{number}"


def _word(verdict: Verdict) -> str:
    return f'<span class="{_CLASSES[verdict.word]}">{verdict.word}</span>'


def _model_page(
    one: Asked, name: str, rows: Sequence[tuple[Claim, Verdict]], *, has_picture: bool
) -> Iterator[str]:
    about, tasks = one.about, [f"`{task}` (up to {n} prompts)" for task, n in one.prompts.items()]
    shape = f"{about['layers']} layers, width {about['d_model']}, {about['d_vocab']:,} tokens"
    yield from (f"# {name}", "", f"`{one.model}`: {shape}. Asked of {', '.join(tasks)}.", "")
    if has_picture:
        picture = f"![Depth at a glance: what each of its layers does]({_file(one)}.png)"
        yield from (picture, "*Grey, where it is drawn: an untrained model of the same shape.*", "")
    yield from ("## Claims", "", "| claim | here | number | its control, or why not |")
    yield "| --- | --- | --- | --- |"
    for claim, verdict in rows:
        if verdict.word != NOT_ASKED:
            beside = "; ".join(filter(None, (verdict.control, verdict.why)))
            cells = (_said(claim, claim.paper.name), _word(verdict), verdict.number, _plain(beside))
            yield f"| {' | '.join(cells)} |"
    yield from ("", "## Findings", "")
    for task in one.prompts:
        yield from (
            f"### {task}",
            "",
            "| analysis | finding | the numbers |",
            "| --- | --- | --- |",
        )
        for cell, findings in one.findings.items():
            if cell.task == task:
                yield from _finding_rows(cell.name, findings)
        yield ""


def _said(claim: Claim, paper: str) -> str:
    return f"{_plain(claim.says)} <small>{paper}<br>{_plain(claim.rule)}</small>"


def _finding_rows(name: str, findings: Sequence[dict[str, object]]) -> Iterator[str]:
    link = f"[{name}](../analyses/{name.partition('@')[0]}.md)"
    for i, finding in enumerate(findings):
        beside = "; ".join(map(str, evidence(finding)))
        claim = _plain(str(finding["claim"]))
        yield f"| {link if i == 0 else ''} | {claim} | {_plain(beside)} |"


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _how(models: Sequence[Asked]) -> Iterator[str]:
    runs = {run.folder: run for one in models for run in one.runs}
    versions = {(run.info["versions"]["interp"], run.info["started"][:10]) for run in runs.values()}
    made = ", ".join(f"{version} on {day}" for version, day in sorted(versions))
    names = list(dict.fromkeys(folder.name for folder in runs))
    yield from ("## How it was made", "", f"By interp {made}:", "", "```text")
    yield from (f"interp run studies/{name}.toml --out runs/{name}" for name in names)
    every = " ".join(f"runs/{name}" for name in names)
    yield from (f"python -m interp.atlas {every} --out docs/atlas", "```")


_TOP = """---
hide: [toc]
---

# Atlas

What papers say about depth, tested on {n_models} trained models that anyone can run, and on one
that was never trained: {n_claims} claims, each decided by one number with its interval; below the
claim is the number, and where it has to lie. A program writes these pages from finished runs; a
model's name leads to all that was found of it."""

_MEANS = {
    HOLDS: "the 95 % interval lies on the side that the claim says",
    CONTROL_TOO: "so it does, but it is not shown to differ from its control",
    FAILS: "the interval lies on the other side",
    UNDECIDED: "the interval holds both sides, or there are too few prompts or layers",
}
_LEGEND = "\n".join(
    (
        *(f"- {_word(Verdict(word))}: {means}" for word, means in _MEANS.items()),
        "- –: not asked; the model has no such task, or the analysis was not run",
        "",
        "About one interval in twenty misses by chance. Small models show what can be, not what",
        "large ones do: none of the models of these papers was run.",
    )
)
