"""The store: float rows in immutable, checked files, in a folder or behind a URL."""

from tracin.index.store.manifest import Added as Added
from tracin.index.store.manifest import Entry as Entry
from tracin.index.store.manifest import Manifest as Manifest
from tracin.index.store.manifest import Unit as Unit
from tracin.index.store.number_format import number_format as number_format
from tracin.index.store.shard import Column as Column
from tracin.index.store.storage import absolute as absolute
from tracin.index.store.storage import open_storage as open_storage
from tracin.index.store.store import Removed as Removed
from tracin.index.store.store import Report as Report
from tracin.index.store.store import Shard as Shard
from tracin.index.store.store import Store as Store
