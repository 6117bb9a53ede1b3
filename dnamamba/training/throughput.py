"""What a chip could do at most, to say which share of it a run gets; and the memory that the run has taken."""

import re
import resource

import torch

PEAK_BF16_FLOPS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "MI300X": 1307e12,
}
"""Dense bf16 FLOP/s with fp32 accumulation by a word of the device's name; the first that fits counts.

From the makers' data sheets (nvidia.com/en-us/data-center/h100 and its like), whose footnote says "with sparsity": half
of what they print. Compared in November 2026 with the table of prime's zeroband (from torchtitan), which links them,
and with a reseller's copy of the L40S sheet.
"""


def peak_bf16_flops(device: torch.device) -> float | None:
    """Of this device; None for a CPU, a slice of a GPU (MIG) and chips that are not in the table."""
    return None if device.type != "cuda" else peak_by_name(torch.cuda.get_device_name(device))


def peak_by_name(name: str) -> float | None:
    """The entry of `PEAK_BF16_FLOPS` for a device's name as its driver gives it."""
    if re.search(r"\bMIG\b", name):
        return None
    return next((peak for chip, peak in PEAK_BF16_FLOPS.items() if re.search(rf"\b{chip}\b", name)), None)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory so far: allocated by torch on a GPU; on a CPU all that this process held, libraries too."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
