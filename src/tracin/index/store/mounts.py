"""Whether a folder lies on another machine's disk, where mapped files are slow or unsafe."""

import os
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# fmt: off
NETWORK = frozenset([
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "ceph", "gpfs", "beegfs", "glusterfs",
    "orangefs", "pvfs2", "afs", "9p", "fuse",
])
# fmt: on


def is_on_network(folder: Path) -> bool:
    """Whether the folder's file system is on a network; False where that is unknown."""
    return kind_of(folder) in NETWORK


def kind_of(folder: Path, mounts: Path = MOUNTS) -> str:
    """The kind of the file system that a folder is on, "fuse" for all of that family.

    Only Linux says: elsewhere it is "".
    """
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    path = os.path.realpath(folder)
    best, kind = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        # Of two mounts on one point the later one is seen, hence >=.
        point = _unescaped(fields[4])
        if _is_within(path, point) and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return kind.partition(".")[0]


def _is_within(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
