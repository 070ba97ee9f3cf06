"""On what a benchmark ran."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from distsens.experiment import Precision

_PACKAGES = ("torchattacks", "foolbox", "adversarial-robustness-toolbox", "pyautoattack", "ray", "mlflow")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Names, counts and versions: ``cpu``, ``cores``, ``threads``, ``gpu`` (null without), ``packages`` and so on.

    ``load`` is the machine's load average of the last minute; where others worked on it, timings are to be doubted.
    """
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "load": os.getloadavg()[0],
    }


def fast_precision(device: torch.device) -> Precision:
    """bf16 where the device computes in it, else fp32, which is faster than bf16 by emulation."""
    capable = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device.type == "cuda"
        else bool({"avx512_bf16", "amx_bf16", "bf16"}.intersection(_cpu_flags()))
    )
    return "bf16" if capable else "fp32"


def _cpu_flags() -> list[str]:
    """The features that Linux lists; none elsewhere."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    return next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])


def _cpu() -> str:
    """The processor's name; Linux knows it from a file, others from the platform module."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
