"""numba kernels; import nothing of ours.

SIMD is how 8-bit integers are multiplied here: "avx512vnni", "avxvnni", or "portable" (plain LLVM vectors,
the same sums). STREAMAI_SIMD=portable asks for the last.

numba does not see that a callee in another file has changed and would serve stale machine code, so its
cache folder is named by a digest of all kernel sources. Import this before any `@njit`.
"""

import hashlib
import os
import pathlib

import numba
from llvmlite import binding

_here = pathlib.Path(__file__).parent
SOURCES_DIGEST = hashlib.blake2b(
    b"".join(p.read_bytes() for p in sorted(_here.glob("*.py"))), digest_size=8
).hexdigest()


def _simd() -> str:
    """What the processor has, unless numba was told to compile for another one."""
    if os.environ.get("STREAMAI_SIMD") == "portable" or numba.config.CPU_NAME or numba.config.CPU_FEATURES:
        return "portable"
    has = binding.get_host_cpu_features()
    return next((name for name in ("avx512vnni", "avxvnni") if has.get(name)), "portable")


SIMD = _simd()
numba.config.CACHE_DIR = os.path.join(
    os.environ.get("STREAMAI_KERNEL_CACHE", os.path.expanduser("~/.cache/streamai")),
    SOURCES_DIGEST + ("-portable" if SIMD == "portable" else ""),
)
jit = {"cache": True, "nogil": True, "error_model": "numpy"}
"""Options of every kernel. No fastmath, no parallel: the same bits everywhere."""
leaf = dict(jit, _nrt=False)
"""Options of a kernel that makes no array: numba then counts no references to those it is given. Without
it every call of a function with several exits costs two atomic additions an array: the JSON scanner took
436 ns a record instead of 130."""
