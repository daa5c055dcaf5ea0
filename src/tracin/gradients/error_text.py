"""Torch's errors in one line, as reasons in a coverage table."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0][:100] if lines else type(error).__name__
