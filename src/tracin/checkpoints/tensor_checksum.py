"""A checksum of a tensor's numbers, taken where they lie: weights on a GPU need no way to the CPU.

Sums of whole numbers that wrap around do not depend on their order, so that every device arrives at
the same one.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tracin.files import bytes_of, fingerprint
from tracin.sharding import is_dtensor
from tracin.torch_internals import inner_tensors, is_made_of_others

WORDS = 1 << 14  # of 8 bytes, in a block that is summed
AT_ONCE = {"cpu": 16}  # blocks: what fits the cache of a CPU; elsewhere memory is no matter
ELSEWHERE = 1 << 11


def tensor_checksum(tensor: Tensor, dtype: torch.dtype | None = None) -> str:
    """Equal for tensors with the same numbers, bit for bit, of one shape and dtype, on any device.

    Each word of 8 bytes is multiplied with an odd number of its place and added up per block of
    128 kB; the sums are hashed. A tensor that is made of others (quantised weights) is the hash of
    its parts. A tensor that is divided over ranks is gathered, so that all ranks must call this.

    Args:
        tensor: Of any dtype and layout in memory.
        dtype: What the numbers are converted to before, if given.

    Example:
        >>> tensor_checksum(torch.arange(3.0)) == tensor_checksum(torch.arange(3.0).double())
        False
        >>> tensor_checksum(torch.arange(3.0).double(), torch.float32)
        '59c671eae9e7c969'
    """
    plain = tensor.detach()
    if is_dtensor(plain):
        plain = plain.full_tensor()
    if is_made_of_others(plain):
        inner = [f"{tensor_checksum(part)};" for part in inner_tensors(plain)]
        return fingerprint([type(plain).__name__, *inner], size=8)
    plain = plain if dtype is None else plain.to(dtype)
    words = bits_of(plain)
    sums = block_sums(words) if words.numel() else words
    return fingerprint([f"{plain.dtype} {list(plain.shape)}", bytes_of(sums)], size=8)


def bits_of(tensor: Tensor) -> Tensor:
    """A tensor's bytes as whole numbers, with zeros after the last: [words]."""
    content = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    missing = -content.numel() % 8
    if missing or content.data_ptr() % 8 or content.storage_offset() % 8:
        content = torch.nn.functional.pad(content, (0, missing)).clone()
    return content.view(torch.int64)


def block_sums(words: Tensor) -> Tensor:
    """One sum per block of words, on the CPU: [blocks]."""
    factors = torch.from_numpy(odd_numbers(WORDS)).to(words.device)
    step = WORDS * AT_ONCE.get(words.device.type, ELSEWHERE)
    whole = words.numel() // WORDS * WORDS
    sums = [
        (words[start : min(start + step, whole)].view(-1, WORDS) * factors).sum(1)
        for start in range(0, whole, step)
    ]
    rest = words[whole:]
    sums.append((rest * factors[: rest.numel()]).sum().reshape(1))
    return torch.cat(sums).cpu()


@lru_cache(maxsize=1)
def odd_numbers(count: int) -> np.ndarray:
    """Odd numbers that look random and are always the same: splitmix64 of 1, 2, ...

    Source: Steele, Lea and Flood, 2014, https://doi.org/10.1145/2660193.2660195
    """
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31)) | np.uint64(1)).view(np.int64)
