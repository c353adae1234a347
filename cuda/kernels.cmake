# The one table of what is instantiated. A row is one translation unit: all
# patterns of one op for one element type, head-dim bucket and shared-memory
# budget (KiB), compiled only for the architectures that would choose it.
set(TILEATTN_KERNELS full CACHE STRING "full: machine code of all kernels; dev: of those for float16")
set(TILEATTN_DIMS 32 64 96 128 192 256)
set(TILEATTN_DIMS_NEIGHBORHOOD 32 64 128)  # with larger heads its kernels spill registers
set(TILEATTN_DIMS_LINEAR 64 128)  # channels of queries and keys
set(TILEATTN_DIM_TAYLOR2 16)      # likewise
set(TILEATTN_DIMS_ONE_BUDGET 32 64)  # whose backward has the same tiles in every budget
set(TILEATTN_DIMS_SM90 64 128 256)  # whose budget is 227 KiB; other head dims are padded to these
# The PTX of every kernel is there in both, for newer devices and for the PTX simulator.
set(TILEATTN_MACHINE_CODE_full half_t bfloat16_t)
set(TILEATTN_MACHINE_CODE_dev half_t)
if(NOT DEFINED TILEATTN_MACHINE_CODE_${TILEATTN_KERNELS})
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

# tileattn_archs_of(element out archs...): those to make machine code of its kernels for.
function(tileattn_archs_of element out)
  if(NOT element IN_LIST TILEATTN_MACHINE_CODE_${TILEATTN_KERNELS})
    set(ARGN "")
  endif()
  set(${out} "${ARGN}" PARENT_SCOPE)
endfunction()

# Forward and backward of one head dim: `prefix` is that of the ops' names.
macro(tileattn_rows_of_dim callback prefix element dim archs)
  # The forward's tiles fit 99 KiB everywhere.
  cmake_language(CALL ${callback} ${prefix}forward 99 ${element} ${dim} "${archs}")
  if(${dim} IN_LIST TILEATTN_DIMS_ONE_BUDGET)
    cmake_language(CALL ${callback} ${prefix}backward 99 ${element} ${dim} "${archs}")
  else()
    foreach(budget IN ITEMS 99 163)
      set(archs_of_budget "")
      foreach(arch ${archs})
        if(arch IN_LIST TILEATTN_ARCHS_OF_BUDGET_${budget})
          list(APPEND archs_of_budget ${arch})
        endif()
      endforeach()
      cmake_language(CALL ${callback} ${prefix}backward ${budget} ${element} ${dim} "${archs_of_budget}")
    endforeach()
  endif()
endmacro()

# tileattn_kernel_rows(callback): callback(op budget element dim archs) for each row.
macro(tileattn_kernel_rows callback)
  foreach(element IN ITEMS half_t bfloat16_t)
    tileattn_archs_of(${element} archs ${TILEATTN_CUDA_ARCHS})
    foreach(dim IN LISTS TILEATTN_DIMS)
      tileattn_rows_of_dim(${callback} "" ${element} ${dim} "${archs}")
    endforeach()
    foreach(dim IN LISTS TILEATTN_DIMS_NEIGHBORHOOD)
      tileattn_rows_of_dim(${callback} neighborhood_ ${element} ${dim} "${archs}")
    endforeach()
  endforeach()
  if(TILEATTN_BUILDS_SM90)
    foreach(element IN ITEMS half_t bfloat16_t)
      tileattn_archs_of(${element} archs 90a)
      foreach(dim IN LISTS TILEATTN_DIMS_SM90)
        cmake_language(CALL ${callback} forward 227 ${element} ${dim} "${archs}")
      endforeach()
    endforeach()
  endif()
endmacro()

# tileattn_linear_rows(callback): callback(op budget element dim archs) for each row. The tiles fit
# 99 KiB everywhere.
macro(tileattn_linear_rows callback)
  foreach(element IN ITEMS half_t bfloat16_t)
    tileattn_archs_of(${element} archs ${TILEATTN_CUDA_ARCHS})
    foreach(dim IN LISTS TILEATTN_DIMS_LINEAR)
      cmake_language(CALL ${callback} linear 99 ${element} ${dim} "${archs}")
    endforeach()
    cmake_language(CALL ${callback} linear_taylor2 99 ${element} ${TILEATTN_DIM_TAYLOR2} "${archs}")
  endforeach()
endmacro()
