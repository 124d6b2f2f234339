"""What does each layer of a language model do, what needs it, and is the depth used?"""

import importlib
from typing import TYPE_CHECKING, Any

from interp._moved import install

if TYPE_CHECKING:
    from interp.figures.export import export
    from interp.models import Model, load_model
    from interp.runs import open_run
    from interp.runs.viewing import view
    from interp.sites import Site
    from interp.tasks import Prompt, Task, load_task

__version__ = "1.0.0rc1"
_HOME = {
    "Model": "interp.models",
    "Prompt": "interp.tasks",
    "Site": "interp.sites",
    "Task": "interp.tasks",
    "export": "interp.figures.export",
    "load_model": "interp.models",
    "load_task": "interp.tasks",
    "open_run": "interp.runs",
    "view": "interp.runs.viewing",
}
__all__ = [
    "Model",
    "Prompt",
    "Site",
    "Task",
    "__version__",
    "export",
    "load_model",
    "load_task",
    "open_run",
    "view",
]

install()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(
        f"module 'interp' has no attribute {name!r}; there is {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    return __all__
