"""What memory a device or this process has, and has taken."""

import gc
from pathlib import Path

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Return how much memory of a device nobody uses."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def release(device: torch.device) -> None:
    """Return memory that nothing refers to any more to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak() -> None:
    """Let Linux' peak of the resident set, VmHWM, begin anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def status_bytes(field: str) -> int:
    """Return a size in bytes from what Linux says about this process.

    Args:
        field: Such as VmRSS, what is resident, or VmHWM, its peak.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
