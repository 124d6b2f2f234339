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
from interp.replay.recording import Fork, Forward, Read, Recording, Work, Wrote

__all__ = [
    "Arguments",
    "Block",
    "Fork",
    "Forward",
    "KVTap",
    "Read",
    "Recording",
    "Work",
    "Wrote",
    "dry_pass",
    "first",
    "replaced_forward",
    "with_first",
]
