"""The device that something computes on."""

import torch

from daft.common.errors import UserError


def find(name: str | None, key: str) -> torch.device:
    """The device of this name: cpu, cuda, cuda:N; a GPU if there is one for None and `auto`.

    key: what named it, for the UserError that is raised if it is not here.
    """
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device, found = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise UserError(f"{key}={name}: {found} CUDA device(s) found; use auto or cpu")
    return device
