"""Activations on disk or in an object store, shared by every analysis, run and process.

    STORE/store.json                     what was configured: quota, type (optional)
    STORE/MODEL/SHARD.safetensors        tensors `KIND.INDEX` [token ...] and `tokens` [token]
    STORE/MODEL/NAME.corpus.json         where a captured corpus lies, prompt by prompt

A shard holds a batch of prompts, one after the other without padding; its header names them and has
a checksum of every tensor and of itself. A prompt's key is a hash of everything that its
activations depend on, so asking twice computes once, and changing one weight, token or type never
reads a stale value. A shard is published whole or not at all, under a name that is a hash of its
content, so any number of processes may fill one store and none of them needs a lock.
"""

from interp.store.activations import ActivationStore
from interp.store.corpus import Corpus, open_corpus
from interp.store.export import to_arrow, to_dataset, to_numpy
from interp.store.keys import prompt_key, stored_name
from interp.store.loader import TokenVectors
from interp.store.settings import Settings, configure, read_settings
from interp.store.upkeep import info, prune, shards, verify, verify_shard

__all__ = [
    "ActivationStore",
    "Corpus",
    "Settings",
    "TokenVectors",
    "configure",
    "info",
    "open_corpus",
    "prompt_key",
    "prune",
    "read_settings",
    "shards",
    "stored_name",
    "to_arrow",
    "to_dataset",
    "to_numpy",
    "verify",
    "verify_shard",
]
