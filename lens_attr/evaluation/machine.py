"""What a measured time depends on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Processor, threads, and the GPU if ``device`` is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    found: dict[str, Any] = {
        "cpu": cpu or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if device is not None and device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
