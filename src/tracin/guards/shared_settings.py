"""Settings of the whole process, restored also where several threads set them at one time.

One thread would take for the user's what another has set. So the guards that are open at one time
keep what the first of them found, and the last thread to leave restores it.
"""

import threading
from typing import final

from tracin.guards.settings import ProcessSettings


class _Group:
    """The guards that are open at one time."""

    def __init__(self) -> None:
        self.first: ProcessSettings | None = None
        self.members: list[SharedSettings] = []


_groups: dict[str, _Group] = {}


@final
class SharedSettings:
    """One guard's part in them."""

    def __init__(self) -> None:
        self._thread = threading.current_thread()
        self._group: _Group | None = None
        self._before: ProcessSettings | None = None

    def join(self) -> None:
        """Note the settings as they are."""
        group = _groups.setdefault("now", _Group())  # one step, whatever other threads do
        group.members.append(self)
        self._group, self._thread = group, threading.current_thread()
        self._before = ProcessSettings.now()
        group.first = group.first or self._before

    def leave(self) -> None:
        """Restore them, unless another thread is at work; a second call does nothing."""
        group = self._group
        if group is None:
            return
        if not any(
            each._thread is not self._thread and each._thread.is_alive() for each in group.members
        ):
            is_last = group.members == [self]
            settings = group.first if is_last else self._before
            if settings is not None:
                settings.put_back()
        if self in group.members:
            group.members.remove(self)
        if not group.members and _groups.get("now") is group:
            _groups.pop("now", None)
        self._group = None
