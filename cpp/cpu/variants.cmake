# Sources that are compiled once for each instruction set.
set(TILEATTN_VARIANTS portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND TILEATTN_VARIANTS avx2 avx512)
  set(TILEATTN_FLAGS_avx2 -mavx2 -mfma)
  set(TILEATTN_FLAGS_avx512 ${TILEATTN_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
                            -mprefer-vector-width=512)
  # For what is in bfloat16.
  set(TILEATTN_BF16_VARIANT avx512_bf16)
  set(TILEATTN_FLAGS_avx512_bf16 ${TILEATTN_FLAGS_avx512} -mavx512bf16)
endif()

# Adds to `target` the objects of the sources compiled for one instruction set, in a namespace
# named after it.
function(tileattn_add_variant target variant)
  set(objects ${target}_${variant})
  add_library(${objects} OBJECT ${ARGN})
  target_link_libraries(${objects} PRIVATE tileattn::headers)
  target_include_directories(${objects} PRIVATE ${PROJECT_SOURCE_DIR}/cpp)
  target_compile_definitions(${objects} PRIVATE TILEATTN_ISA=${variant})
  # Infinities and NaN keep their meaning: they mark what is hidden, and what went wrong.
  target_compile_options(${objects} PRIVATE ${TILEATTN_FLAGS_${variant}} -ffp-contract=fast
                         -fno-math-errno -fno-trapping-math -fno-exceptions -Wno-psabi)
  set_target_properties(${objects} PROPERTIES POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
endfunction()

# The same for each instruction set; TILEATTN_X86_VARIANTS tells the target that there are more
# than `portable`.
function(tileattn_add_variants target)
  foreach(variant IN LISTS TILEATTN_VARIANTS)
    tileattn_add_variant(${target} ${variant} ${ARGN})
  endforeach()
  if(avx512 IN_LIST TILEATTN_VARIANTS)
    target_compile_definitions(${target} PRIVATE TILEATTN_X86_VARIANTS)
  endif()
endfunction()
