"""What a sound is among the values of an example, and what it is in words."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracin.plain_text import a_kind

CHANNELS = 8  # of a sound, at most


def samples_of(audio: Any) -> tuple[Tensor, int]:
    """The samples of a sound, [time] or [channels, time], and how many there are per second.

    Args:
        audio: (samples, rate).

    Raises:
        ValueError: It is no such pair.

    Example:
        >>> samples_of((np.zeros((2, 8)), 8000))[0].shape
        torch.Size([2, 8])
    """
    if not isinstance(audio, tuple | list) or len(audio) != 2:
        raise ValueError(f"a sound is a pair (samples, rate), not {a_kind(audio)}")
    samples, rate = audio
    if not isinstance(samples, Tensor):
        samples = torch.from_numpy(np.array(samples))
    samples = samples.detach().cpu()
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[0] > CHANNELS):
        raise ValueError(
            f"the samples of a sound are [time] or [channels, time], not {list(samples.shape)}"
        )
    if float(rate) < 1:
        raise ValueError(f"a sound has a rate of samples per second, not {rate!r}")
    return samples, round(float(rate))


def sound_in_words(audio: Any) -> str:
    """How long a sound is, for where it cannot be played.

    Example:
        >>> sound_in_words((torch.zeros(12_000), 8000))
        '(a sound of 1.5 s at 8,000 Hz)'
    """
    samples, rate = samples_of(audio)
    return f"(a sound of {samples.shape[-1] / rate:.3g} s at {rate:,} Hz)"


def sound_in(value: Any) -> tuple[Any, Any] | None:
    """The sound that a data set's column holds, as Hugging Face's datasets decode it; or None.

    Example:
        >>> sound_in({"path": None, "array": np.zeros(4), "sampling_rate": 16000})[1]
        16000
    """
    if isinstance(value, Mapping) and "array" in value and "sampling_rate" in value:
        return value["array"], value["sampling_rate"]
    return None
