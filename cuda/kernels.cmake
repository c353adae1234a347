# The one table of what is instantiated. A row is one translation unit: all
# patterns of one op for one element type, head-dim bucket and shared-memory
# budget (KiB), compiled only for the architectures that would choose it.
set(TILEATTN_KERNELS full CACHE STRING "Which kernels to build: full or dev (few for bfloat16)")
set(TILEATTN_DIMS_full_half_t 32 64 96 128 192 256)
set(TILEATTN_DIMS_full_bfloat16_t 32 64 96 128 192 256)
set(TILEATTN_DIMS_dev_half_t 32 64 96 128 192 256)
set(TILEATTN_DIMS_dev_bfloat16_t 64 256)
# The rows of sm_90a, whose budget is 227 KiB; other head dims are padded to these.
set(TILEATTN_DIMS_SM90_full_half_t 64 128 256)
set(TILEATTN_DIMS_SM90_full_bfloat16_t 64 128 256)
set(TILEATTN_DIMS_SM90_dev_half_t 64 128 256)
set(TILEATTN_DIMS_SM90_dev_bfloat16_t 128)
# Linear attention: channels of queries and keys. Its tiles fit 99 KiB everywhere.
set(TILEATTN_DIMS_LINEAR_full_half_t 64 128)
set(TILEATTN_DIMS_LINEAR_full_bfloat16_t 64 128)
set(TILEATTN_DIMS_LINEAR_dev_half_t 64 128)
set(TILEATTN_DIMS_LINEAR_dev_bfloat16_t 128)
if(NOT DEFINED TILEATTN_DIMS_${TILEATTN_KERNELS}_half_t)
  message(FATAL_ERROR "TILEATTN_KERNELS is '${TILEATTN_KERNELS}'; allowed: dev, full")
endif()

set(TILEATTN_CUDA_ARCHS "80;86;89;90a" CACHE STRING "Architectures to compile for, besides PTX")
set(TILEATTN_ARCHS_OF_BUDGET_99 86 89)
set(TILEATTN_ARCHS_OF_BUDGET_163 80 90a)

# A build for tests has them whatever the architectures, for the PTX simulator and to
# see what ptxas says of them.
if(TILEATTN_TESTS OR "90a" IN_LIST TILEATTN_CUDA_ARCHS)
  set(TILEATTN_BUILDS_SM90 ON)
else()
  set(TILEATTN_BUILDS_SM90 OFF)
endif()

# tileattn_kernel_rows(callback): callback(op budget element dim archs) for each row.
macro(tileattn_kernel_rows callback)
  foreach(element IN ITEMS half_t bfloat16_t)
    foreach(dim IN LISTS TILEATTN_DIMS_${TILEATTN_KERNELS}_${element})
      # The forward's tiles fit 99 KiB everywhere.
      cmake_language(CALL ${callback} forward 99 ${element} ${dim} "${TILEATTN_CUDA_ARCHS}")
      foreach(budget IN ITEMS 99 163)
        set(archs "")
        foreach(arch IN LISTS TILEATTN_CUDA_ARCHS)
          if(arch IN_LIST TILEATTN_ARCHS_OF_BUDGET_${budget})
            list(APPEND archs ${arch})
          endif()
        endforeach()
        cmake_language(CALL ${callback} backward ${budget} ${element} ${dim} "${archs}")
      endforeach()
    endforeach()
    if(TILEATTN_BUILDS_SM90)
      foreach(dim IN LISTS TILEATTN_DIMS_SM90_${TILEATTN_KERNELS}_${element})
        cmake_language(CALL ${callback} forward 227 ${element} ${dim} 90a)
      endforeach()
    endif()
  endforeach()
endmacro()

# tileattn_linear_rows(callback): callback(budget element dim archs) for each row.
macro(tileattn_linear_rows callback)
  foreach(element IN ITEMS half_t bfloat16_t)
    foreach(dim IN LISTS TILEATTN_DIMS_LINEAR_${TILEATTN_KERNELS}_${element})
      cmake_language(CALL ${callback} 99 ${element} ${dim} "${TILEATTN_CUDA_ARCHS}")
    endforeach()
  endforeach()
endmacro()
