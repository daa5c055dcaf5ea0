"""Small JSON files that know their format and their own checksum."""

import json
import re
from collections.abc import Mapping
from typing import Any

from tracin.index.store.checksums import BLANK, refuse_changed, with_checksum
from tracin.schema import Check, parsed

FORMAT = 3
SUM = "xxh3_128"
MOST = 1 << 28  # bytes: of the manifest of a model with a million parameters, and some
_FORMAT = re.compile(rb'\{\s*"format": (\d{1,9}),')
_HEAD = re.compile(rb'\{\s*"format": \d+,\s*"xxh3_128": "([0-9a-f]{32})"')


class OtherFormatError(ValueError):
    """The file is whole, but of another format."""


def written(content: Mapping[str, Any]) -> bytes:
    """The file of some fields; equal for equal ones."""
    text = json.dumps({"format": FORMAT, SUM: BLANK.decode(), **content}, indent=1) + "\n"
    return with_checksum(text.encode(), text.index(BLANK.decode()))


def unsealed(content: bytes) -> dict[str, Any]:
    """The fields of a file, but its format and its checksum.

    Raises:
        OtherFormatError: It is of another format.
        ValueError: It was changed, or is no such file.
    """
    known = _FORMAT.match(content)
    if known and int(known[1]) != FORMAT:
        raise OtherFormatError(f"it is of format {int(known[1])}, and this release reads {FORMAT}")
    head = _HEAD.match(content)
    if not head:
        raise ValueError("it does not begin with its format and checksum")
    refuse_changed(content, head.start(1))
    fields = parsed(content)
    if not isinstance(fields, dict):
        raise ValueError("it is no mapping")
    del fields["format"], fields[SUM]
    return fields


def read(content: bytes, schema: Check) -> Any:
    """The fields of a file, but its format and its checksum, as the schema has them.

    Raises:
        OtherFormatError: It is of another format.
        ValueError: It was changed, or its fields are not those of the schema.
    """
    return schema(unsealed(content), "it")
