"""Which device a backbone runs on."""

from __future__ import annotations

import torch

from store.errors import InvalidInputError


def find_device(name: str) -> torch.device:
    """Return the device of a name, a GPU for ``"auto"`` if there is one.

    Raises
    ------
    InvalidInputError
        If it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInputError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0].rstrip('.')}; try 'auto' or 'cpu'."
        ) from error
    return device


def find_devices(names: str) -> list[torch.device]:
    """Return the devices of names separated by commas; for ``"auto"`` all GPUs, or the CPU if there is none.

    Raises
    ------
    InvalidInputError
        If one cannot be used here.
    """
    if names == "auto" and torch.cuda.device_count() > 1:
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [find_device(name.strip()) for name in names.split(",")]


def device_name(device: torch.device) -> str:
    """Return what the device is called by its maker."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
