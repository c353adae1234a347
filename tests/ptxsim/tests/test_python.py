"""A CUDA shared library used from Python on plain numpy memory."""

import ctypes
import sys

import numpy as np

# Loaded first and globally, the simulator stands in for libcudart.so.13.
simulator = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
library = ctypes.CDLL(sys.argv[2])
x = np.arange(1000, dtype=np.float32)
y = np.zeros_like(x)
for a in (x, y):
    simulator.ptxsim_register_range(ctypes.c_void_p(a.ctypes.data), ctypes.c_size_t(a.nbytes))


def pointer(a: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(a.ctypes.data)


assert library.scale(pointer(x), pointer(y), ctypes.c_float(3), 1000) == 0
assert np.array_equal(y, 3 * x)
assert library.scale(pointer(x), pointer(y), ctypes.c_float(3), 1100) != 0, (
    "access past the array not reported"
)
print("python: ok")
