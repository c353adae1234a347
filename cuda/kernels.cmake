# The one table of what is instantiated. A row is one translation unit: all
# patterns of one op for both element types, one head-dim bucket and shared-memory
# budget (KiB), compiled only for the architectures that would choose it, and as PTX
# for newer devices and for the PTX simulator.
set(TILEATTN_ELEMENTS half_t bfloat16_t)
set(TILEATTN_DIMS 32 64 96 128 192 256)
set(TILEATTN_DIMS_NEIGHBORHOOD 32 64 128)  # with larger heads its kernels spill registers
set(TILEATTN_DIMS_LINEAR 64 128)  # channels of queries and keys
set(TILEATTN_DIM_TAYLOR2 16)      # likewise
set(TILEATTN_DIMS_ONE_BUDGET 32 64)  # whose backward has the same tiles in every budget
set(TILEATTN_DIMS_SM90 64 128 256)  # whose budget is 227 KiB; other head dims are padded to these

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

# Forward and backward of one head dim: `prefix` is that of the ops' names.
macro(tileattn_rows_of_dim callback prefix dim)
  # The forward's tiles fit 99 KiB everywhere.
  cmake_language(CALL ${callback} ${prefix}forward 99 ${dim} "${TILEATTN_CUDA_ARCHS}")
  if(${dim} IN_LIST TILEATTN_DIMS_ONE_BUDGET)
    cmake_language(CALL ${callback} ${prefix}backward 99 ${dim} "${TILEATTN_CUDA_ARCHS}")
  else()
    foreach(budget IN ITEMS 99 163)
      set(archs_of_budget "")
      foreach(arch ${TILEATTN_CUDA_ARCHS})
        if(arch IN_LIST TILEATTN_ARCHS_OF_BUDGET_${budget})
          list(APPEND archs_of_budget ${arch})
        endif()
      endforeach()
      cmake_language(CALL ${callback} ${prefix}backward ${budget} ${dim} "${archs_of_budget}")
    endforeach()
  endif()
endmacro()

# tileattn_kernel_rows(callback): callback(op budget dim archs) for each row.
macro(tileattn_kernel_rows callback)
  foreach(dim IN LISTS TILEATTN_DIMS)
    tileattn_rows_of_dim(${callback} "" ${dim})
  endforeach()
  foreach(dim IN LISTS TILEATTN_DIMS_NEIGHBORHOOD)
    tileattn_rows_of_dim(${callback} neighborhood_ ${dim})
  endforeach()
  if(TILEATTN_BUILDS_SM90)
    foreach(dim IN LISTS TILEATTN_DIMS_SM90)
      cmake_language(CALL ${callback} forward 227 ${dim} 90a)
    endforeach()
  endif()
endmacro()

# tileattn_linear_rows(callback): callback(op budget dim archs) for each row. The tiles fit
# 99 KiB everywhere.
macro(tileattn_linear_rows callback)
  foreach(dim IN LISTS TILEATTN_DIMS_LINEAR)
    cmake_language(CALL ${callback} linear 99 ${dim} "${TILEATTN_CUDA_ARCHS}")
  endforeach()
  cmake_language(CALL ${callback} linear_taylor2 99 ${TILEATTN_DIM_TAYLOR2} "${TILEATTN_CUDA_ARCHS}")
endmacro()
