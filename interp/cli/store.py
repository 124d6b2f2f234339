"""Look after a store of activations: what is in it, is it whole, what can go."""

import re
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from interp.cli.options import AsJson
from interp.cli.terminal import say, say_document
from interp.errors import StoreError

app = typer.Typer(no_args_is_help=True, help=__doc__)
_SIZES = {
    "": 1,
    "b": 1,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

StorePath = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="A store: a folder, or any fsspec URL such as s3://BUCKET/FOLDER."
    ),
]


@app.command()
def info(place: StorePath, as_json: AsJson = False) -> None:
    """Say what a store holds, from headers alone.

    Example: interp store info runs/store
    """
    from interp import store

    contents = store.info(place)
    if as_json:
        say_document("store-info", **asdict(contents, dict_factory=_plain))
        return
    for m in contents.models:
        sites, types = len(m.tensors - {"tokens"}), ", ".join(sorted(m.dtypes))
        say(
            f"{m.name or 'unnamed model'} ({m.model[:16]}): {_size(m.bytes)} in {m.shards:,} shards"
        )
        say(f"    {m.prompts:,} prompts, {m.tokens:,} tokens, {sites} sites, {types}")
        for corpus in sorted(m.corpora):
            say(f"    corpus {corpus}")
    limit = "no quota" if contents.quota is None else f"a quota of {_size(contents.quota)}"
    say(f"{_size(contents.bytes)} in {place}, {limit}, kept as {contents.dtype or 'computed'}")
    if contents.aside:
        unfinished = _size(contents.aside)
        say(f"{unfinished} in unfinished files; `interp store prune` removes those left behind")
    for problem in contents.unreadable:
        say(problem)


@app.command()
def verify(place: StorePath, as_json: AsJson = False) -> None:
    """Read everything and compare checksums; exit status 1 if anything is damaged.

    Example: interp store verify runs/store
    """
    from interp import store

    whole, wrong = store.verify(place)
    if as_json:
        say_document("store-verify", whole=whole, damaged=wrong)
    else:
        for problem in wrong:
            say(problem)
        say(
            f"{whole} files are whole, {len(wrong)} damaged;"
            " what is damaged is computed again when it is needed"
        )
    if wrong:
        raise typer.Exit(1)


@app.command()
def prune(
    place: StorePath,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Unused for this long: 12h, 30d, 8w.")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Least recently used beyond this size: 500MB, 20GB."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Only of this model: its name, or how its fingerprint starts."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove shards by age, size or model; what is needed again is computed again.

    Examples: interp store prune runs/store --older-than 30d · interp store prune runs/store
    --max-size 20GB --dry-run
    """
    from interp import store

    age = None if older_than is None else _number(older_than, _AGES, "an age such as 12h or 30d")
    size = (
        None if max_size is None else int(_number(max_size, _SIZES, "a size such as 500MB or 20GB"))
    )
    gone = store.prune(place, older_than=age, max_bytes=size, model=model, dry_run=dry_run)
    if as_json:
        removed = [file._asdict() for file in gone]
        say_document("store-prune", removed=removed, dry_run=dry_run)
        return
    for file in gone if dry_run else []:
        say(
            f"{file.name}  {_size(file.size)}  last used"
            f" {time.strftime('%Y-%m-%d %H:%M', time.localtime(file.used))}"
        )
    verb = "would be removed" if dry_run else "removed"
    say(f"{len(gone)} files, {_size(sum(file.size for file in gone))}, {verb} from {place}")


@app.command()
def configure(
    place: StorePath,
    quota: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest size, such as 20GB; `none` for no limit."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Keep float32, bfloat16 or float16; `none` for the type computed."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set a store's quota or type, for every process that opens it from now on.

    Example: interp store configure runs/store --quota 20GB --dtype float16
    """
    from interp import store
    from interp.store.files import Files
    from interp.store.shard import DamagedError

    if quota is None and dtype is None:
        raise StoreError("nothing to configure; --quota or --dtype is needed")
    try:
        before = store.read_settings(Files(place))
    except DamagedError:
        before = store.Settings()
    limit = before.quota if quota is None else _limit(quota)
    kept = before.dtype if dtype is None else None if dtype == "none" else dtype
    store.configure(place, store.Settings(limit, kept))
    if as_json:
        say_document("store-configure", url=place, quota=limit, dtype=kept)
        return
    say(f"{place}: {'no quota' if limit is None else _size(limit)}, kept as {kept or 'computed'}")


def _limit(text: str) -> int | None:
    return None if text == "none" else int(_number(text, _SIZES, "a size such as 20GB, or none,"))


def _number(text: str, units: dict[str, Any], needed: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in units:
        raise StoreError(f"{text!r} given; {needed} is needed")
    return float(match[1]) * float(units[match[2]])


def _size(n_bytes: int) -> str:
    count = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return fields as JSON can hold them, with sets as sorted lists."""
    sets = (set, frozenset)
    return {key: sorted(value) if isinstance(value, sets) else value for key, value in items}
