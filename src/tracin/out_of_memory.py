"""Tells running out of memory from errors that another way of computing may avoid."""

import torch

# What allocators say where they raise no class of their own: the CPU's, Apple's, cuBLAS, cuDNN.
_WORDS = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may avoid this error.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
        True
        >>> is_out_of_memory(RuntimeError("mat1 and mat2 must have the same dtype"))
        False
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def raise_if_out_of_memory(error: BaseException) -> None:
    """Raise `error` again if memory ran out: a slower way would only need more of it."""
    if is_out_of_memory(error):
        raise error
