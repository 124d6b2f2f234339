"""`interp doctor` checks a checkpoint."""

from typing import Annotated, Any

import typer
from rich.table import Table

from interp.cli.terminal import err, out, say, say_json


def doctor(
    model: Annotated[str, typer.Option(help="Model name, folder or Hugging Face id.")],
    device: Annotated[
        str, typer.Option(help="cpu, cuda, mps … (default: the best there is)")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16 (default: the checkpoint's)")
    ] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch or commit of the hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code of the checkpoint.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the diagnosis as JSON.")] = False,
) -> None:
    """Check a checkpoint: is it whole, and is every place in it what its name says? Exits 1 if not,
    2 if there is none.

    Example: interp doctor --model path/to/checkpoint
    """
    import transformers

    from interp.testing.doctor import diagnose

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with err.status("loading", spinner="dots") as status:
        how: dict[str, Any] = {"device": device, "dtype": dtype, "revision": revision}
        found = diagnose(model, progress=status.update, trust_remote_code=trust_remote_code, **how)
    if as_json:
        say_json(found.to_dict())
    else:
        _print_diagnosis(found.to_dict())
    if not found.is_healthy:
        raise typer.Exit(1)


def _print_diagnosis(found: dict[str, Any]) -> None:
    marks = {"ok": "✓", "note": "·", "failed": "✗"}
    for sign in found["signs"]:
        say(f"{marks[sign['verdict']]} {sign['check']}: {sign['what']}")
    if found["memory"]:
        table = Table(
            "analysis",
            "memory MB",
            "forwards",
            title="For 32 prompts of 64 tokens, with each analysis's defaults",
        )
        for row in found["memory"]:
            costs = (
                (str(row["memory_mb"]), f"{'≤ ' if row['is_bound'] else ''}{row['forwards']}")
                if "forwards" in row
                else ("–", row["why_not"])
            )
            table.add_row(row["analysis"], *costs)
        out.print(table)
    said = "healthy" if found["healthy"] else "not to be trusted"
    say(f"{found['model']} is {said}")
