"""Replay: a clean pass is recorded once, and its blocks can be run again on any residual."""

from interp.replay.blocks import (
    Arguments,
    Block,
    CacheStandIn,
    dry_pass,
    first,
    replaced_forward,
    with_first,
)
from interp.replay.recording import Recording
from interp.replay.runner import OnWrite, Read, Runner
from interp.replay.work import Work

__all__ = [
    "Arguments",
    "Block",
    "CacheStandIn",
    "OnWrite",
    "Read",
    "Recording",
    "Runner",
    "Work",
    "dry_pass",
    "first",
    "replaced_forward",
    "with_first",
]
