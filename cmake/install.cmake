# What find_package(tileattn) finds: tileattn::headers, tileattn::cpu and, where it was
# built, tileattn::cuda. Everything lies inside the Python package, so that the wheel is
# the C++ distribution too:
#   tileattn/include/tileattn/*.h    tileattn/libtileattn_*.so    tileattn/lib/cmake/tileattn
# Included once, after all targets exist.
include(CMakePackageConfigHelpers)

set(TILEATTN_CMAKE_DIR tileattn/lib/cmake/tileattn)

foreach(part headers cpu cuda)
  if(NOT TARGET tileattn_${part})
    continue()
  endif()
  set_target_properties(tileattn_${part} PROPERTIES EXPORT_NAME ${part})
  install(TARGETS tileattn_${part} EXPORT tileattnTargets LIBRARY DESTINATION tileattn)
endforeach()

install(DIRECTORY ${PROJECT_SOURCE_DIR}/cpp/include/tileattn DESTINATION tileattn/include
        FILES_MATCHING PATTERN "*.h")
install(EXPORT tileattnTargets NAMESPACE tileattn:: DESTINATION ${TILEATTN_CMAKE_DIR})

configure_package_config_file(
  ${CMAKE_CURRENT_LIST_DIR}/tileattnConfig.cmake.in ${PROJECT_BINARY_DIR}/tileattnConfig.cmake
  INSTALL_DESTINATION ${TILEATTN_CMAKE_DIR} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/tileattnConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/tileattnConfig.cmake
              ${PROJECT_BINARY_DIR}/tileattnConfigVersion.cmake
        DESTINATION ${TILEATTN_CMAKE_DIR})
