"""Where real data lie: in the folder that TRACIN_DATA names, or else in the user's cache.

What no folder holds is downloaded once from where its makers publish it, with a checksum.
"""

import os
from pathlib import Path

from tracin.errors import DataError


def held(name: str) -> Path | None:
    """The folder of this data set in the one that TRACIN_DATA names; None if it has none."""
    root = os.environ.get("TRACIN_DATA")
    folder = Path(root).expanduser() / name if root else None
    return folder if folder is not None and folder.is_dir() else None


def downloaded(url: str, checksum: str) -> Path:
    """A file from the user's cache; downloaded if it is not there yet.

    Args:
        url: Where its makers publish it.
        checksum: "md5:..." or "sha256:...".

    Raises:
        DataError: It could not be downloaded, or is another file.
    """
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f"{url} is needed. Set TRACIN_DATA to a folder that holds the data "
            "(docs/results.md says in which form), or install pooch to have it downloaded: "
            "pip install pooch."
        ) from error
    try:
        return Path(pooch.retrieve(url, checksum, path=pooch.os_cache("tracin")))
    except (OSError, ValueError) as error:  # no connection; another checksum
        raise DataError(
            f"Cannot download {url}: {error} Set TRACIN_DATA to a folder that holds the data."
        ) from error
