"""Who made the processor, and what it can do."""

import os

import torch

# What oneDNN may use at most where ONEDNN_MAX_CPU_ISA says so: the values in rising order, and what each brings.
_ISAS: tuple[tuple[str, set[str]], ...] = (
    ("AVX512_CORE", {"avx512_f"}),
    ("AVX512_CORE_VNNI", {"avx512_vnni"}),
    ("AVX512_CORE_BF16", {"avx512_bf16"}),
    ("AVX512_CORE_FP16", set()),
    ("AVX512_CORE_AMX", {"amx_bf16", "amx_int8"}),
)
_LESSER_ISAS = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")


def processor_flags() -> frozenset[str]:
    """Instruction sets of the processor under torch's names, for instance `avx512_f`, `avx512_vnni`, `avx512_bf16`,
    `amx_bf16`, less those that `ATEN_CPU_CAPABILITY` or `ONEDNN_MAX_CPU_ISA` forbid; empty where neither torch nor
    the system tells."""
    flags = _flags_of_torch() if hasattr(torch.cpu, "get_capabilities") else _flags_of_linux()
    forbidden: set[str] = set()
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    names = [name for name, _ in _ISAS]
    allowed = 0 if limit in _LESSER_ISAS else names.index(limit) + 1 if limit in names else len(names)
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        allowed = 0
    forbidden.update(*(brought for _, brought in _ISAS[allowed:]))
    return frozenset(flags - forbidden)


def _flags_of_torch() -> set[str]:
    return {name for name, value in torch.cpu.get_capabilities().items() if value is True}


def _flags_of_linux() -> set[str]:
    names = {"avx512f": "avx512_f", "avx512bw": "avx512_bw"}
    return {names.get(flag, flag) for flag in _cpuinfo("flags", "Features").split()}


def processor_vendor() -> str:
    """`AuthenticAMD`, `GenuineIntel` or what else the processor calls its maker; empty where the system does not
    tell."""
    return _cpuinfo("vendor_id").strip()


def _cpuinfo(*names: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2] for line in file if line.startswith(names)), "")
    except OSError:
        return ""


__all__ = ["processor_flags", "processor_vendor"]
