"""How to install what is missing: written once, for all errors that name an extra."""


def install_line(extra: str) -> str:
    """The command that installs an extra of tracin, and where to run it.

    tracin is on no package index, so that "tracin[cli]" alone would find nothing.

    Args:
        extra: A name under `[project.optional-dependencies]` of pyproject.toml.

    Returns:
        Words to end a sentence with.

    Example:
        >>> install_line("cli")
        "pip install '.[cli]' in a checkout of tracin"
    """
    return f"pip install '.[{extra}]' in a checkout of tracin"
