"""The store: float rows in immutable, checked files, in a folder or behind a URL."""

from tracin.store.manifest import Added as Added
from tracin.store.manifest import Entry as Entry
from tracin.store.manifest import Manifest as Manifest
from tracin.store.manifest import Unit as Unit
from tracin.store.number_format import number_format as number_format
from tracin.store.place import absolute as absolute
from tracin.store.place import place_of as place_of
from tracin.store.shard import Column as Column
from tracin.store.store import Removed as Removed
from tracin.store.store import Report as Report
from tracin.store.store import Shard as Shard
from tracin.store.store import Store as Store
