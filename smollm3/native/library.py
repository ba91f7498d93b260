"""Finds and describes the native library: C structs as ctypes, and one plain sentence when it is absent.

Nothing here knows torch or a model class. The library is built from csrc/ when the package is installed and
a C++17 compiler is present; without it everything runs on torch.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ABI_VERSION = 4
LIBRARY_NAMES = ("_smollm3.so", "_smollm3.dylib", "_smollm3.dll")
ISA_NAMES = ("portable", "avx2", "avxvnni", "avx512", "avx512bf16", "zen4", "amx", "neon")
KIND_BF16, KIND_W4, KIND_W8, KIND_W6 = 0, 1, 2, 3


class CMatrix(ctypes.Structure):
    """`Sm3Matrix` of csrc/smollm3.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("zero", ctypes.c_int32),
        ("has_min", ctypes.c_int32),
        ("has_table", ctypes.c_int32),
        ("table", ctypes.c_int8 * 16),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class CLayer(ctypes.Structure):
    """`Sm3Layer` of csrc/smollm3.h."""

    _fields_ = (
        *((name, CMatrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("input_norm", ctypes.c_void_p),
        ("post_norm", ctypes.c_void_p),
        ("use_rope", ctypes.c_int32),
        ("window", ctypes.c_int32),
    )


class CModel(ctypes.Structure):
    """`Sm3Model` of csrc/smollm3.h."""

    _fields_ = (
        ("hidden", ctypes.c_int64),
        ("intermediate", ctypes.c_int64),
        ("vocab", ctypes.c_int64),
        ("layers", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("norm_eps", ctypes.c_float),
        ("rope_scale", ctypes.c_float),
        ("inv_freq", ctypes.c_void_p),
        ("layer", ctypes.POINTER(CLayer)),
        ("final_norm", ctypes.c_void_p),
        ("embedding", CMatrix),
        ("head", CMatrix),
    )


class CBatch(ctypes.Structure):
    """`Sm3Batch` of csrc/smollm3.h."""

    _fields_ = (
        ("sequences", ctypes.c_int32),
        ("max_blocks", ctypes.c_int32),
        ("token_ids", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("blocks", ctypes.c_void_p),
        ("logit_rows", ctypes.c_void_p),
        ("num_logits", ctypes.c_int32),
        ("logits", ctypes.c_void_p),
        ("hidden", ctypes.c_void_p),
    )


_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "sm3_error": (ctypes.c_char_p, []),
    "sm3_abi_version": (ctypes.c_int32, []),
    "sm3_usable_isas": (ctypes.c_int32, []),
    "sm3_amx_missing": (ctypes.c_char_p, []),
    "sm3_block_size": (ctypes.c_int32, []),
    "sm3_block_bytes": (ctypes.c_int64, [ctypes.c_void_p]),
    "sm3_create": (
        ctypes.c_void_p,
        [ctypes.POINTER(CModel), ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32],
    ),
    "sm3_destroy": (None, [ctypes.c_void_p]),
    "sm3_forward": (ctypes.c_int32, [ctypes.c_void_p, ctypes.POINTER(CBatch)]),
    "sm3_copy_block": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]),
    "sm3_block_data": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int32]),
    "sm3_settle": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_int64]),
    "sm3_alloc": (ctypes.c_void_p, [ctypes.c_int64]),
    "sm3_free": (None, [ctypes.c_void_p, ctypes.c_int64]),
    "sm3_packed_size": (ctypes.c_int64, [ctypes.POINTER(CMatrix)]),
    "sm3_pack": (
        ctypes.c_int32,
        [ctypes.POINTER(CMatrix), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
    ),
    "sm3_quantize": (
        ctypes.c_int32,
        [
            ctypes.POINTER(CMatrix),
            ctypes.c_void_p,
            ctypes.c_int32,
            ctypes.c_void_p,
            ctypes.c_int32,
            ctypes.c_int32,
        ],
    ),
    "sm3_pack_blocks": (
        ctypes.c_int32,
        [ctypes.POINTER(CMatrix), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32],
    ),
    "sm3_pack_nibbles": (
        ctypes.c_int32,
        [ctypes.POINTER(CMatrix), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32],
    ),
    "sm3_unpack_nibbles": (ctypes.c_int32, [ctypes.POINTER(CMatrix), ctypes.c_void_p]),
    "sm3_unpack_rows": (
        ctypes.c_int32,
        [ctypes.POINTER(CMatrix), ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p],
    ),
    "sm3_read": (ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32]),
    "sm3_matmul": (
        ctypes.c_int32,
        [
            ctypes.POINTER(CMatrix),
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_int32,
            ctypes.c_int32,
        ],
    ),
}


@dataclass(frozen=True)
class NativeStatus:
    """Whether the native engine can run here, and if not, why; or why AMX is not used though it is there."""

    available: bool
    reason: str
    isa: str | None = None
    isas: tuple[str, ...] = ()


def open_library(path: Path) -> ctypes.CDLL:
    """Load the library at `path` and declare its functions; OSError where it is none of ours."""
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise OSError(f"{path} has no function {name}: reinstall smollm3 to build it anew")
        function.restype, function.argtypes = result, arguments
    if library.sm3_abi_version() != ABI_VERSION:
        raise OSError(f"{path} was built for another version: reinstall smollm3 to build it anew")
    return library


@cache
def load_library() -> ctypes.CDLL:
    """Load the library that was built with the package; OSError says why there is none."""
    folder = Path(__file__).parent
    for name in LIBRARY_NAMES:
        if (folder / name).is_file():
            return open_library(folder / name)
    raise OSError("it was not built: install a C++17 compiler (g++ or clang++) and reinstall smollm3")


@cache
def native_status() -> NativeStatus:
    """Report whether the native engine loads and which instruction sets it can use here."""
    try:
        library = load_library()
    except OSError as error:
        return NativeStatus(False, str(error))
    usable = int(library.sm3_usable_isas())
    isas = tuple(name for idx, name in enumerate(ISA_NAMES) if usable >> idx & 1)
    return NativeStatus(True, str(library.sm3_amx_missing().decode()), isas[-1], isas)


def last_error(library: ctypes.CDLL) -> str:
    """Return what the last failed call of this thread said."""
    return str(library.sm3_error().decode("utf-8", "replace"))
