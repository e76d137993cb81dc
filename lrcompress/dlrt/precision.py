"""Which number formats a device computes with in earnest."""

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 can gain time on a device; elsewhere it is emulated, and many times slower than float32.

    This is known of NVIDIA's and of x86 processors; all others are taken to have it.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("NO AVX", "AVX2")
