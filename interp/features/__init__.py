"""Sparse dictionaries: what a site holds, as a few active features and an error."""

from interp.features.dictionary import Dictionary
from interp.features.latents import Latents, latents
from interp.features.saved import load_dictionary, save_dictionary

__all__ = ["Dictionary", "Latents", "latents", "load_dictionary", "save_dictionary"]
