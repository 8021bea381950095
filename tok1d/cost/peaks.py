"""Peak FLOP/s of GPUs as their makers state them, for the model-FLOPs utilisation of a run."""

from __future__ import annotations

import re

import torch

# Dense peaks in TFLOP/s: (bf16 with fp32 accumulation, TF32, fp32 without tensor cores); None: the GPU has none.
# Values of NVIDIA's data sheets for V100, T4, A100, A10, A30, A40, L4, L40, L40S, RTX A6000, RTX 6000 Ada,
# H100 (SXM, PCIe, NVL), H200 (SXM, NVL), HGX B200, without the factor 2 of sparsity; GeForce: appendices of the white
# papers on GA102, Ada and Blackwell (RTX). They were entered from memory. The bf16 entries (V100, T4: fp16) of all but
# RTX 6000 Ada, RTX 5090 and H200 NVL were then compared with secondary sources: tables of Lightning and TorchTitan,
# vendors' pages. Keys match the whole name that the driver reports, so that laptop versions and MIG slices do not
# match.
Peak = tuple[float | None, float | None, float]
PEAKS: dict[str, Peak] = {
    r"V100-SXM[23]-(16|32)GB": (None, None, 15.7),
    r"V100-PCIE-(16|32)GB": (None, None, 14.0),
    r"T4": (None, None, 8.1),
    r"A100[- ](SXM4|PCIE|PG509)-(40|80)GB|A100 80GB PCIe": (312.0, 156.0, 19.5),
    r"A10": (125.0, 62.5, 31.2),
    r"A30": (165.0, 82.0, 10.3),
    r"A40": (149.7, 74.8, 37.4),
    r"RTX A6000": (154.8, 77.4, 38.7),
    r"L4": (121.0, 60.0, 30.3),
    r"L40": (181.05, 90.5, 90.5),
    r"L40S": (362.05, 183.0, 91.6),
    r"RTX 6000 Ada Generation": (364.25, 182.1, 91.1),
    r"H100 80GB HBM3": (989.4, 494.7, 66.9),
    r"H100 PCIe": (756.5, 378.0, 51.0),
    r"H100 NVL": (835.5, 417.5, 60.0),
    r"H200|GH200 (480GB|120GB)": (989.4, 494.7, 66.9),
    r"H200 NVL": (835.5, 417.5, 60.0),
    r"B200": (2250.0, 1125.0, 75.0),
    r"GeForce RTX 3090": (71.0, 35.6, 35.6),
    r"GeForce RTX 4090": (165.2, 82.6, 82.6),
    r"GeForce RTX 5090": (209.5, 104.8, 104.8),
}
FP16 = {r"V100-SXM[23]-(16|32)GB": 125.0, r"V100-PCIE-(16|32)GB": 112.0, r"T4": 65.0}  # elsewhere as in bf16


def known_peak(name: str, precision: str, *, tf32: bool = False) -> float | None:
    """Dense peak in TFLOP/s of a GPU, or None where the GPU or this arithmetic is not in the table.

    Args:
        name: as the driver reports it.
        precision: "bf16", "fp16" or "fp32".
        tf32: fp32 matrix products use TF32 on tensor cores.
    """
    short = re.sub(r"^(NVIDIA )?(Tesla )?", "", name)
    for pattern, (bf16, on_tensor_cores, plain) in PEAKS.items():
        if re.fullmatch(pattern, short):
            half = {"bf16": bf16, "fp16": FP16.get(pattern, bf16)}
            full = on_tensor_cores if tf32 and on_tensor_cores else plain
            return half.get(precision, full)
    return None


def peak_of(device: torch.device, precision: str, given: float | None = None) -> float | None:
    """Peak of one device in TFLOP/s: `given` (`train.peak_tflops`), else the value in the table; None is unknown."""
    if given is not None or device.type != "cuda":
        return given
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return known_peak(torch.cuda.get_device_name(device), precision, tf32=tf32)
