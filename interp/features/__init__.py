"""Sparse dictionaries: what a site holds, as a few active features and an error."""

from interp.features.dictionary import Dictionary
from interp.features.saved import load_dictionary, save_dictionary
from interp.features.splitting import Latents, latents

__all__ = ["Dictionary", "Latents", "latents", "load_dictionary", "save_dictionary"]
