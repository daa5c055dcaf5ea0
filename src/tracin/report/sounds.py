"""Sounds as WAV data URIs, by the standard library alone: a report asks for nothing outside."""

import base64
import io
import wave
from typing import Any

import torch
from torch.nn import functional as F

from tracin.results.shown_sound import samples_of

SECONDS = 10  # of a sound, at most
RATE = 16_000  # samples per second: speech needs no more; faster ones are averaged


def sound_uri(audio: Any) -> str:
    """A sound as one channel of 16 bits, in a URI that an `<audio>` plays.

    The mean of all channels, the first ten seconds, at most 32,000 samples per second. Numbers
    beyond -1 to 1, and whole numbers, are divided by the largest.

    The format: RIFF WAVE, https://www.mmsp.ece.mcgill.ca/Documents/AudioFormats/WAVE/WAVE.html

    Args:
        audio: (samples, rate), as in `tracin.Shown`.

    Raises:
        ValueError: It is no sound, or it has no samples.

    Example:
        >>> sound_uri((torch.zeros(8), 8000))[:32]
        'data:audio/wav;base64,UklGRjQAAA'
    """
    samples, rate = samples_of(audio)
    if not samples.numel():
        raise ValueError("the sound has no samples")
    is_whole = not samples.is_floating_point()
    mono = samples.reshape(-1, samples.shape[-1])[:, : SECONDS * rate].double().mean(0)
    mono = mono.nan_to_num(0.0, 0.0, 0.0)
    times = max(1, rate // RATE)
    if times > 1 and len(mono) >= times:
        mono = F.avg_pool1d(mono[None], times)[0]
    largest = float(mono.abs().max())
    if (is_whole or largest > 1) and largest:
        mono = mono / largest
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(max(1, rate // times))
        file.writeframes((mono * 32767).round().to(torch.int16).numpy().astype("<i2").tobytes())
    return "data:audio/wav;base64," + base64.b64encode(out.getvalue()).decode()
