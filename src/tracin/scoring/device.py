"""The device that a user names, checked where it is named."""

import torch

from tracin.errors import DeviceError

Device = torch.device | str | None


def checked_device(device: Device) -> Device:
    """The device as it came.

    Raises:
        DeviceError: There is no such device here, or none that holds numbers.
    """
    if device is None:
        return None
    try:
        found = torch.empty(0, device=device).device
    # Torch says in many ways that there is no such device, or that this is none.
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise DeviceError(
            f"device={device!r} was given, but there is no such device here: "
            f"{str(error).splitlines()[0].rstrip('.')}. "
            'Name one such as "cpu" or "cuda:0", or leave it out to compute where the model is.'
        ) from error
    if found.type == "meta":
        raise DeviceError(
            'device="meta" was given, but what lies there has no numbers to compute with. Name one '
            'such as "cpu" or "cuda:0", or leave it out to compute where the model is.'
        )
    return device
