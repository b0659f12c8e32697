"""What machines that are not at hand can do, from their makers' data sheets: for planning, not for timing.

Each entry says what `subquad.machine.Machine` holds. Rates are of dense work, without sparsity. What no data
sheet says, and what the torch kernels reach of it, is marked as published or as assumed.
"""

from __future__ import annotations

from typing import Any

GPU: dict[str, Any] = {
    "kind": "cuda",
    # The largest products reach 0.78 of the peak and copies 0.92 of the bandwidth: so torchao takes an H100.
    # Smaller ones are assumed: a short side feeds fewer rows to each tensor core.
    "sides": [[8, 0.02], [16, 0.05], [64, 0.25], [256, 0.6], [1024, 0.78]],
    # Forward FlashAttention-2, which torch calls: 0.35 of an H100 (arXiv:2407.08608, section 1), 0.73 of an
    # A100 (arXiv:2307.08691, section 4). The recurrence, chunks of batched products, is assumed.
    "shares": {
        "batched": 0.25, "attention": 0.35, "causal": 0.35, "none": 0.1, "head": 0.08, "token": 0.08,
        "channel": 0.02, "delta": 0.03, "convolution": 0.01,
    },
    "launch": 2e-6,  # one kernel after another, with Python running ahead
    "view": 0.0,
}  # fmt: skip

CPU: dict[str, Any] = {
    "kind": "cpu",
    # All assumed, after what `calibrate-machine` finds on Zen 5 cores.
    "sides": [[8, 0.3], [64, 0.6], [512, 0.8]],
    "shares": {
        "batched": 0.6, "attention": 0.5, "causal": 0.45, "none": 0.4, "head": 0.35, "token": 0.35,
        "channel": 0.05, "delta": 0.15, "convolution": 0.05,
    },
    "launch": 2e-6,
    "view": 1e-6,
}  # fmt: skip

TARGETS: dict[str, dict[str, Any]] = {
    "a100": {
        **GPU,
        "name": "NVIDIA A100 SXM 80 GB",
        # NVIDIA A100 data sheet (2021): TF32 156, BF16 and FP16 312, FP64 on tensor cores 19.5 TFLOP/s; FP32
        # 19.5, which torch uses for f32 unless TF32 is allowed. 80 GB at 2,039 GB/s.
        "products": {"f32": 19.5e12, "tf32": 156e12, "bf16": 312e12, "f16": 312e12, "f64": 19.5e12},
        "shares": {**GPU["shares"], "attention": 0.6, "causal": 0.6},
        # L2 40 MB (data sheet); its rate is assumed at 2.5 times the memory's.
        "bandwidth": [[20e6, 4.7e12], [160e6, 0.92 * 2.039e12]],
        # 108 SMs at 1.41 GHz (whitepaper), 16 special functions a clock each (CUDA C++ guide, 8.0).
        "elements": {"exp": 108 * 16 * 1.41e9},
        "memory": 80e9,
        "link": 32e9,  # PCIe Gen4: 64 GB/s both ways (data sheet)
    },
    "h100": {
        **GPU,
        "name": "NVIDIA H100 SXM 80 GB",
        # NVIDIA H100 data sheet, SXM; its figures with sparsity halved: TF32 494.5, BF16 and FP16 989.5,
        # FP8 1979; FP32 67, FP64 tensor 67 TFLOP/s. 80 GB at 3.35 TB/s.
        "products": {"f32": 67e12, "tf32": 494.5e12, "bf16": 989.5e12, "f16": 989.5e12, "f64": 67e12,
                     "f8": 1979e12},
        "bandwidth": [[25e6, 7.7e12], [200e6, 0.92 * 3.35e12]],  # L2 50 MB (whitepaper), rate assumed
        "elements": {"exp": 3.9e12},  # arXiv:2407.08608, section 2.2
        "memory": 80e9,
        "link": 64e9,  # PCIe Gen5: 128 GB/s both ways (data sheet)
    },
    "h200": {
        **GPU,
        "name": "NVIDIA H200 SXM 141 GB",
        # NVIDIA H200 data sheet, SXM: as the H100, with 141 GB at 4.8 TB/s.
        "products": {"f32": 67e12, "tf32": 494.5e12, "bf16": 989.5e12, "f16": 989.5e12, "f64": 67e12,
                     "f8": 1979e12},
        "bandwidth": [[25e6, 7.7e12], [200e6, 0.92 * 4.8e12]],
        "elements": {"exp": 3.9e12},
        "memory": 141e9,
        "link": 64e9,
    },
    "b200": {
        **GPU,
        "name": "NVIDIA B200 180 GB",
        # NVIDIA HGX B200, 8 GPUs. A sixteenth, as with sparsity: BF16 and FP16 36, TF32 18, FP8 72 PFLOP/s.
        # An eighth: FP32 600 and FP64 296 TFLOP/s; of the DGX B200 data sheet 1,440 GB and 64 TB/s.
        "products": {"f32": 75e12, "tf32": 1125e12, "bf16": 2250e12, "f16": 2250e12, "f64": 37e12,
                     "f8": 4500e12},
        "bandwidth": [[60e6, 18e12], [500e6, 0.92 * 8e12]],  # L2 126 MB as reported, rate assumed
        "elements": {"exp": 148 * 16 * 1.85e9},  # SMs and clock as reported, 16 a clock as before
        "memory": 180e9,
        "link": 64e9,  # PCIe Gen5 (data sheet)
    },
    "rtx4090": {
        **GPU,
        "name": "NVIDIA GeForce RTX 4090",
        # NVIDIA Ada architecture whitepaper, table 2: FP32 82.6 TFLOP/s; tensor cores, sums in FP32: FP16 and
        # BF16 165.2, TF32 82.6, FP8 330.3; FP64 a 64th of FP32. 24 GB at 1,008 GB/s, L2 72 MB.
        "products": {"f32": 82.6e12, "tf32": 82.6e12, "bf16": 165.2e12, "f16": 165.2e12, "f64": 1.29e12,
                     "f8": 330.3e12},
        "shares": {**GPU["shares"], "attention": 0.7, "causal": 0.7},  # assumed
        "bandwidth": [[36e6, 4e12], [290e6, 0.92 * 1.008e12]],  # L2 rate assumed
        "elements": {"exp": 128 * 16 * 2.52e9},  # 128 SMs, 2.52 GHz (whitepaper), 16 a clock (8.9)
        "memory": 24e9,
        "link": 32e9,  # PCIe Gen4 x16
    },
    "xeon": {
        **CPU,
        "name": "Intel Xeon Platinum 8480+ (56 cores, AVX-512, AMX)",
        # Intel ARK: 56 cores, 2.0 GHz base, 105 MB cache, 8 channels of DDR5-4800 (307.2 GB/s). Two AVX-512
        # units a core (64 f32 FLOPs a clock); AMX: 2,048 bf16 FLOPs a clock (Intel optimization manual).
        "products": {"f32": 56 * 2.0e9 * 64, "bf16": 56 * 2.0e9 * 2048, "f16": 56 * 2.0e9 * 128,
                     "f64": 56 * 2.0e9 * 32},
        "bandwidth": [[50e6, 1.5e12], [400e6, 0.8 * 307.2e9]],  # rate of the caches assumed, as the 0.8
        "elements": {"exp": 56 * 1.5e9},  # assumed: 1.5 G elements a second and core
        "memory": 512e9,  # as it is often fitted; up to 4 TB
        "link": None,
    },
    "epyc": {
        **CPU,
        "name": "AMD EPYC 9755 (128 cores, AVX-512)",
        # AMD product page: 128 cores, 2.7 GHz base, 512 MB L3, 12 channels of DDR5-6400 (614 GB/s). Zen 5
        # starts two 512-bit multiply-adds a clock (64 f32 FLOPs), twice that in bf16; f16 is assumed.
        "products": {"f32": 128 * 2.7e9 * 64, "bf16": 128 * 2.7e9 * 128, "f16": 128 * 1e9,
                     "f64": 128 * 2.7e9 * 32},
        "bandwidth": [[128e6, 5e12], [1e9, 0.8 * 614e9]],  # rate of the caches assumed, as the 0.8
        "elements": {"exp": 128 * 1.6e9},  # 1.6 G elements a second measured on one Zen 5 core
        "memory": 768e9,  # as it is often fitted; up to 9 TB
        "link": None,
    },
}  # fmt: skip
"""Machines by name; rates are a second's, sizes bytes. See `Machine` for what each field means."""
