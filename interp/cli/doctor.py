"""`interp doctor` checks a checkpoint."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from interp.cli.options import AsJson, Revision, TrustCode
from interp.cli.terminal import err, out, say, say_document

if TYPE_CHECKING:
    from interp.testing.doctor import Diagnosis

_MARKS = {"ok": "✓", "note": "·", "failed": "✗"}


def doctor(
    model: Annotated[str, typer.Option(help="Model name, folder, GGUF file or Hugging Face id.")],
    device: Annotated[
        str, typer.Option(help="cpu, cuda, mps … (default: the best available)")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16, float16 (default: the checkpoint's; on a CPU, what is fast)"
        ),
    ] = "auto",
    revision: Revision = None,
    trust_remote_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Check a checkpoint: is it whole, and is every place in it what its name says?

    Exit status 1 if not, 2 if there is none.

    Example: interp doctor --model path/to/checkpoint
    """
    import transformers

    from interp.testing.doctor import diagnose

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with err.status("loading", spinner="dots") as status:
        how: dict[str, Any] = {"device": device, "dtype": dtype, "revision": revision}
        how["trust_remote_code"] = trust_remote_code
        diagnosis = diagnose(model, progress=status.update, **how)
    if as_json:
        say_document("doctor", **diagnosis.to_dict())
    else:
        _print_diagnosis(diagnosis)
    if not diagnosis.is_healthy:
        raise typer.Exit(1)


def _print_diagnosis(diagnosis: "Diagnosis") -> None:
    for sign in diagnosis.signs:
        say(f"{_MARKS[sign.verdict]} {sign.check}: {sign.what}")
    if diagnosis.memory:
        title = "For 32 prompts of 64 tokens, with each analysis's defaults"
        table = Table("analysis", "memory MB", "forwards", title=title)
        for row in diagnosis.memory:
            if "forwards" in row:
                forwards = f"{'≤ ' if row['is_bound'] else ''}{row['forwards']}"
                table.add_row(row["analysis"], str(row["memory_mb"]), forwards)
            else:
                table.add_row(row["analysis"], "–", row["why_not"])
        out.print(table)
    verdict = "healthy" if diagnosis.is_healthy else "not to be trusted"
    say(f"{diagnosis.model} is {verdict}")
