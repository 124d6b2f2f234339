"""Models: loaded by name, fed with prompts, recorded."""

from interp.models.loading import load_model
from interp.models.model import Model
from interp.models.temporary import temporary_weights

__all__ = ["Model", "load_model", "temporary_weights"]
