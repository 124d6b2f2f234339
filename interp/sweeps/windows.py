"""Windows of neighbouring layers, as people write them."""

from interp.errors import AnalysisError


def first_and_last(text: str, *, what: str = "window") -> tuple[int, int]:
    """Return a window's first and last layer: 2 and 3 of "2-3"; `what` is its name in errors."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise AnalysisError(
            f"{what} {text!r} given; a first and a last layer are needed, such as '2-3'"
        )
    return int(first), int(last)
