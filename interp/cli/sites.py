"""`interp sites` lists the places of a model that can be read and written."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from interp.cli.options import AsJson, Revision, TrustCode
from interp.cli.terminal import err, note, out, say, say_document
from interp.figures.words import layers_named

if TYPE_CHECKING:
    from interp.models.places import SiteFacts


def sites(
    model: Annotated[str, typer.Argument(help="Model name, folder, GGUF file or Hugging Face id.")],
    revision: Revision = None,
    trust_remote_code: TrustCode = False,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Load no model; go by its configuration.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the places of a model: shapes, what can be read and written, and why not.

    A model whose weights are not here, or are more than a third of the free memory, is not loaded:
    places are then those of its configuration, and are not proven by passes.
    With --json, one object for each layer's places, with the module that computes it.

    Example: interp sites zoo/hops-4l
    """
    import transformers

    from interp.runs.outlook import why_without

    transformers.utils.logging.disable_progress_bar()
    how: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    why = "as asked" if no_weights else why_without(model, revision=revision)
    with err.status("loading", spinner="dots"):
        found, n_layers, kind = _places(model, is_loaded=not why, **how)
    if as_json:
        about = {"model": model, "is_proven": not why, "quantised": kind}
        say_document("sites", **about, sites=[vars(place) for place in found])
        return
    say(f"{model}: {n_layers} layers (r: can be read, w: can be written)")
    if why:
        note(f"not loaded ({why}): none of this is proven by passes, as it is with weights")
    if kind:
        say(f"quantised ({kind}): what needs gradients or the weights themselves is refused")
    out.print(_table(found, n_layers=n_layers))


def _places(name: str, *, is_loaded: bool, **how: Any) -> "tuple[list[SiteFacts], int, str]":
    """Return a model's places, its number of layers, and how it is quantised, if it is.

    They are those of its weights, or of its configuration.
    """
    from interp.models import load_model
    from interp.models.places import places
    from interp.models.quantised import quantised
    from interp.models.weightless import NoNumbers, without_weights

    if is_loaded:
        model = load_model(name, **how)
        return places(model), model.n_layers, quantised(model.module)
    with NoNumbers():  # type: ignore[no-untyped-call]
        planned = without_weights(name, **how)
        return places(planned), planned.n_layers, ""


def _table(found: "Sequence[SiteFacts]", *, n_layers: int) -> Table:
    """Return a row for each place that layers share."""
    layers: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place in found:
        name = place.name.replace(f"blocks.{place.layer}.", "blocks.{i}.")
        axes = [axis if n is None else f"{axis} {n}" for axis, n in place.shape.items()]
        can = "rw" if place.is_written else "r" if place.is_read else "–"
        shape = f"[{', '.join(axes)}]" if axes else ""
        layers[name, shape, can, place.why_not].append(place.layer)
    table = Table.grid(padding=(0, 2, 0, 0))
    for is_whole in (True, True, False, False):
        table.add_column(no_wrap=is_whole)
    for (name, shape, can, why), of in layers.items():
        where = "" if len(of) == n_layers else layers_named(of, of=n_layers)
        about = "; ".join(filter(None, (where, why)))
        table.add_row(*map(Text, (can, name, shape or about, about if shape else "")))
    return table
