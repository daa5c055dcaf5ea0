"""Random numbers that are a function of a seed and a name: the same on every machine and device.

They are Philox's, a counter put through a keyed bijection, read as raw 64-bit integers: nothing
here depends on a library's distributions, nor on what was drawn before. J. Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", 2011, https://doi.org/10.1145/2063384.2063405.
"""

import hashlib
import json

import numpy as np
import numpy.typing as npt


def key(seed: int, *path: str | int) -> int:
    """The key of the stream of random numbers with this name: 128 bits."""
    words = json.dumps([seed, *path]).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=16).digest(), "little")


def signs(stream: int, count: int) -> npt.NDArray[np.int8]:
    """+1 or -1 with equal probability: [count]."""
    octets = _raw(stream, -(-count // 64)).astype("<u8").view(np.uint8)
    bits = np.unpackbits(octets, count=count, bitorder="little").view(np.int8)
    bits *= 2
    bits -= 1
    return bits


def integers(stream: int, count: int, below: int) -> npt.NDArray[np.int64]:
    """Integers from 0 to below - 1: [count]."""
    return (_raw(stream, count) % np.uint64(below)).astype(np.int64)


def order(stream: int, count: int) -> npt.NDArray[np.int64]:
    """The integers from 0 to count - 1, shuffled: [count]."""
    return np.argsort(_raw(stream, count), kind="stable")


def _raw(stream: int, count: int) -> npt.NDArray[np.uint64]:
    # A Philox's key is taken as it is; only its default seeding has changed between versions.
    return np.random.Philox(key=stream).random_raw(count)
