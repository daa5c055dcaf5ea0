"""Data as tracin sees it: examples in a fixed order, with ids, handed out in batches."""

from tracin.data.batches import Batch as Batch
from tracin.data.batches import content_of as content_of
from tracin.data.batches import copied as copied
from tracin.data.batches import length as length
from tracin.data.batches import move as move
from tracin.data.batches import part as part
from tracin.data.contents import examples_fingerprint as examples_fingerprint
from tracin.data.documents import documents as documents
from tracin.data.examples import Examples as Examples
from tracin.data.examples import open_examples as open_examples
from tracin.data.ids import WithIds as WithIds
from tracin.data.numbered import with_ids as with_ids
from tracin.data.places import in_data_order as in_data_order
from tracin.data.places import places as places
from tracin.data.repeatable import warn_if_changing as warn_if_changing
from tracin.data.tokens import Size as Size
from tracin.data.tokens import Tokens as Tokens
