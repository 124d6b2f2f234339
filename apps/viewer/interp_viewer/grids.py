"""Every grid of a run by analysis: what pages draw, and what is compared."""

from collections.abc import Callable

from interp_viewer import backpatch, circuit, depthmap, erasure, lens, residual, skip, voids
from interp_viewer.grid import Grid
from interp_viewer.screen import Here

GRIDS: dict[str, Callable[[Here, str], Grid]] = {
    "residual_contribution": residual.grid,
    "layer_skip": skip.grid,
    "logit_lens": lens.grid,
    "void_detection": voids.grid,
    "relevance_patching": circuit.grid,
    "back_patching": backpatch.grid,
    "depth_map": depthmap.grid,
    "residual_erasure": erasure.grid,
}


def choices(here: Here, analysis: str) -> list[str]:
    """Return what there is to choose of an analysis's grids."""
    if analysis == "residual_contribution":
        return [f"{measure}: {component}" for measure, component in residual.choices(here)]
    if analysis == "layer_skip":
        return [choice.name for choice in skip.choices(here)]
    if analysis == "logit_lens":
        return list(lens.READINGS)
    if analysis == "void_detection":
        return list(voids.PHASES)
    if analysis == "relevance_patching":
        return circuit.node_choices(here)
    if analysis == "back_patching":
        return [backpatch.named(*choice) for choice in backpatch.choices(here)]
    return depthmap.choices(here) if analysis == "depth_map" else erasure.choices(here)
