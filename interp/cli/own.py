"""Checks a user's own analyses on small models that are shipped, before a run does any work."""

from typing import TYPE_CHECKING

from interp.errors import AnalysisError, InterpError

if TYPE_CHECKING:
    from interp.runs import Study

_TRIED = (("zoo/hops-4l", "two-hop"), ("zoo/names-6l", "ioi"))
_PROMPTS = 4


def check_own(study: "Study") -> None:
    """Raise AnalysisError, in one line, for an own analysis that breaks the contract of analyses.

    Each is tried, with its default parameters, on the first shipped model and task that it takes.
    """
    if study.files:
        import transformers

        transformers.utils.logging.disable_progress_bar()
    for name, file in study.files.items():
        for model, task in _TRIED:
            broken = _broken_on(name, file, model, task)
            if broken:
                raise AnalysisError(f"{file} on {model}, {task}: {'; '.join(broken)}")
            if broken is not None:
                break


def _broken_on(name: str, file: str, model: str, task: str) -> list[str] | None:
    """Return which promises are broken; None for an analysis that refuses this model or task."""
    from interp import load_model, load_task
    from interp.runs import make_analysis
    from interp.runs.plan import Failure
    from interp.testing import broken_promises

    analysis = make_analysis(name, {}, file=file)
    try:
        return broken_promises(analysis, load_model(model), load_task(task, n=_PROMPTS))
    except InterpError:
        return None
    except Exception as error:  # of `check` or `check_all`
        return [Failure.of(error).error]
