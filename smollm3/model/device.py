"""The one answer to "where shall it run": from what a caller may pass to a torch.device that is there."""

from collections.abc import Mapping
from typing import Any

import torch

from smollm3.errors import DeviceError, ParameterError


def resolve_device(device_map: Any = None) -> torch.device:
    """Return the device that `device_map` (or `device`) asks for.

    None is the CPU; "auto" the first accelerator, else the CPU; an index is a CUDA device. A mapping must
    send the whole model to one device, as {"": "cuda:0"} does.

    Raises:
        DeviceError: the device is not there; nothing else is taken in its place.
        ParameterError: the value says nothing that can be understood, or asks for several devices.
    """
    if isinstance(device_map, Mapping):
        devices = {resolve_device(place) for place in device_map.values()}
        if len(devices) != 1:
            raise ParameterError(
                f"device_map={dict(device_map)} names {len(devices)} devices: the model runs on one, as with "
                "device_map='auto'"
            )
        return devices.pop()
    if device_map is None:
        return torch.device("cpu")
    if device_map in ("auto", "balanced", "sequential"):
        return _best()
    if isinstance(device_map, bool) or not isinstance(device_map, int | str | torch.device):
        raise ParameterError(f"device_map={device_map!r}: give 'auto', 'cpu', 'cuda', 'cuda:0' or an index")
    if device_map == -1:  # how transformers' pipelines spell the CPU
        return torch.device("cpu")
    try:
        device = torch.device("cuda", device_map) if isinstance(device_map, int) else torch.device(device_map)
    except RuntimeError:
        raise ParameterError(
            f"device_map={device_map!r}: give 'auto', 'cpu', 'cuda', 'cuda:0' or an index"
        ) from None
    _check(device, device_map)
    return device


def _best() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _check(device: torch.device, asked: object) -> None:
    instead = "pass device_map='cpu' or device_map='auto'"
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"device {asked} asks for a CUDA GPU and there is none: {instead}")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise DeviceError(
                f"device {asked} asks for CUDA GPU {device.index} and there are {torch.cuda.device_count()}, "
                "counted from 0: pass a lower number or device_map='auto'"
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"device {asked} asks for an Apple GPU and there is none: {instead}")
    elif device.type not in ("cpu", "mps", "cuda", "xpu"):
        raise DeviceError(f"device {asked} cannot run a model: {instead}")
