"""Models: loaded by name, fed with prompts, recorded."""

from interp.models.loading import load_model
from interp.models.model import Model

__all__ = ["Model", "load_model"]
