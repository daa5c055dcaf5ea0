"""The store: float rows in immutable, checked files, in a folder or behind a URL."""

from tracin.index.store.layout import Column as Column
from tracin.index.store.maintenance import Removed as Removed
from tracin.index.store.maintenance import Report as Report
from tracin.index.store.maintenance import delete_stale as delete_stale
from tracin.index.store.maintenance import stale_files as stale_files
from tracin.index.store.maintenance import verify_files as verify_files
from tracin.index.store.manifest import Added as Added
from tracin.index.store.manifest import Entry as Entry
from tracin.index.store.manifest import Manifest as Manifest
from tracin.index.store.manifest import Unit as Unit
from tracin.index.store.number_format import number_format as number_format
from tracin.index.store.opening import absolute as absolute
from tracin.index.store.opening import open_storage as open_storage
from tracin.index.store.shard import Shard as Shard
from tracin.index.store.store import Store as Store
