# The one table of what is instantiated. A row is one translation unit: all
# patterns of one op for both element types, one head-dim bucket and shared-memory
# budget (KiB), compiled only for the architectures that would choose it, and as PTX
# for newer devices and for the PTX simulator.
set(TILEATTN_KERNELS full CACHE STRING
    "Rows: full, or few: for tests, those whose tiles or loops differ in kind")
set(TILEATTN_ELEMENTS half_t bfloat16_t)
set(TILEATTN_DIM_TAYLOR2 16)  # channels of queries and keys
set(TILEATTN_DIMS_ONE_BUDGET 32 64)  # whose backward has the same tiles in every budget
set(TILEATTN_DIMS_SM90 64 128 256)  # whose budget is 227 KiB; other head dims are padded to these
if(TILEATTN_KERNELS STREQUAL "full")
  set(TILEATTN_DIMS 32 64 96 128 192 256)
  set(TILEATTN_DIMS_NEIGHBORHOOD 32 64 128)  # with larger heads its kernels spill registers
  set(TILEATTN_DIMS_LINEAR 64 128)  # channels of queries and keys
else()
  # 96: the other swizzle; 128: more warps, two stages; 256: one stage.
  set(TILEATTN_DIMS 64 96 128 256)
  set(TILEATTN_DIMS_NEIGHBORHOOD 128)
  set(TILEATTN_DIMS_LINEAR 128)
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

# Rows of the backward of one head dim: a budget has tiles of its own. `few` leaves out the budgets
# that no architecture of the build would choose.
macro(tileattn_backward_rows callback op dim)
  if(${dim} IN_LIST TILEATTN_DIMS_ONE_BUDGET)
    cmake_language(CALL ${callback} ${op} 99 ${dim} "${TILEATTN_CUDA_ARCHS}")
  else()
    foreach(budget IN ITEMS 99 163)
      set(archs_of_budget "")
      foreach(arch ${TILEATTN_CUDA_ARCHS})
        if(arch IN_LIST TILEATTN_ARCHS_OF_BUDGET_${budget})
          list(APPEND archs_of_budget ${arch})
        endif()
      endforeach()
      if(archs_of_budget OR TILEATTN_KERNELS STREQUAL "full")
        cmake_language(CALL ${callback} ${op} ${budget} ${dim} "${archs_of_budget}")
      endif()
    endforeach()
  endif()
endmacro()

# tileattn_kernel_rows(callback): callback(op budget dim archs) for each row. The forward's tiles
# fit 99 KiB everywhere.
macro(tileattn_kernel_rows callback)
  foreach(dim IN LISTS TILEATTN_DIMS)
    cmake_language(CALL ${callback} forward 99 ${dim} "${TILEATTN_CUDA_ARCHS}")
    tileattn_backward_rows(${callback} backward ${dim})
  endforeach()
  foreach(dim IN LISTS TILEATTN_DIMS_NEIGHBORHOOD)
    cmake_language(CALL ${callback} neighborhood_forward 99 ${dim} "${TILEATTN_CUDA_ARCHS}")
    tileattn_backward_rows(${callback} neighborhood_backward ${dim})
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
