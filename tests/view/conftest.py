"""A page to ask, closed at the end."""

import pytest
from served import Client, saved

from tracin.view.viewer import Viewer


@pytest.fixture
def opened():
    """Opens folders, and closes them again."""
    viewers = []

    def client(folder, index=None, names=(), **options):
        viewers.append(Viewer(folder, index, names))
        return Client(viewers[-1], **options)

    yield client
    for viewer in viewers:
        viewer.close()


@pytest.fixture
def client(tmp_path, opened):
    return opened(saved(tmp_path / "results"))
