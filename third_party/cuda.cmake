# Finds nvcc, on the machine or from PyPI (`pip install cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]`),
# and sets TILEATTN_HAS_CUDA. Without it the CUDA kernels are left out, with one line saying so.
set(TILEATTN_HAS_CUDA OFF)
if(TILEATTN_CUDA STREQUAL "OFF")
  message(STATUS "CUDA kernels: left out (TILEATTN_CUDA=OFF)")
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u; print(next(iter(u.find_spec('nvidia.cu13').submodule_search_locations)))"
    OUTPUT_VARIABLE nvidia_from_pypi OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_program(TILEATTN_NVCC nvcc HINTS /usr/local/cuda/bin ${nvidia_from_pypi}/bin)
  if(TILEATTN_NVCC)
    set(CMAKE_CUDA_COMPILER ${TILEATTN_NVCC})
  endif()
endif()

if(CMAKE_CUDA_COMPILER)
  set(TILEATTN_HAS_CUDA ON)
elseif(TILEATTN_CUDA STREQUAL "ON")
  message(FATAL_ERROR "TILEATTN_CUDA=ON, but no nvcc was found: install the CUDA toolkit, or "
                      "pip install 'cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]'")
else()
  message(STATUS "CUDA kernels: left out (no nvcc found)")
endif()
