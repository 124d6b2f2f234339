"""Replay: a clean pass is recorded once, and its blocks run again on any residual."""

from interp.replay.blocks import (
    Arguments,
    Block,
    KVTap,
    dry_pass,
    first,
    replaced_forward,
    with_first,
)
from interp.replay.recording import Recording, Work
from interp.replay.runner import Read, Runner, Wrote

__all__ = [
    "Arguments",
    "Block",
    "KVTap",
    "Read",
    "Recording",
    "Runner",
    "Work",
    "Wrote",
    "dry_pass",
    "first",
    "replaced_forward",
    "with_first",
]
