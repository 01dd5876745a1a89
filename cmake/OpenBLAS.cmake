# molae::openblas: a static OpenBLAS inside the addon where there is one (nothing to install for users), else the shared
# one.
if(MOLAE_OPENBLAS_STATIC STREQUAL "OFF")
  set(MOLAE_OPENBLAS_NAMES openblas)
elseif(MOLAE_OPENBLAS_STATIC STREQUAL "ON")
  set(MOLAE_OPENBLAS_NAMES libopenblas.a)
else()
  set(MOLAE_OPENBLAS_NAMES libopenblas.a openblas)
endif()

# Debian keeps the builds of its three threading models apart; ours is the pthread one.
find_library(MOLAE_OPENBLAS_LIBRARY NAMES ${MOLAE_OPENBLAS_NAMES} NAMES_PER_DIR
  PATH_SUFFIXES openblas-pthread ${CMAKE_LIBRARY_ARCHITECTURE}/openblas-pthread)
find_path(MOLAE_OPENBLAS_INCLUDE cblas.h
  PATH_SUFFIXES openblas-pthread ${CMAKE_LIBRARY_ARCHITECTURE}/openblas-pthread openblas)
if(NOT MOLAE_OPENBLAS_LIBRARY OR NOT MOLAE_OPENBLAS_INCLUDE)
  message(FATAL_ERROR "molae needs OpenBLAS to build. On Debian and Ubuntu: apt-get install libopenblas-pthread-dev")
endif()

add_library(molae_openblas INTERFACE)
add_library(molae::openblas ALIAS molae_openblas)
target_include_directories(molae_openblas SYSTEM INTERFACE ${MOLAE_OPENBLAS_INCLUDE})
target_link_libraries(molae_openblas INTERFACE ${MOLAE_OPENBLAS_LIBRARY})
if(MOLAE_OPENBLAS_LIBRARY MATCHES "\\.a$")
  # OpenBLAS's LAPACK is Fortran. Our few lines stand in for its run time; the real one follows, where it is installed, for
  # an OpenBLAS that was built to need more of it. The linker takes from it only what is still missing: of Debian's, nothing.
  add_library(molae_openblas_fortran STATIC cmake/openblas_fortran.cc)
  target_link_libraries(molae_openblas INTERFACE molae_openblas_fortran)
  foreach(runtime gfortran quadmath)
    execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=lib${runtime}.a
      OUTPUT_VARIABLE MOLAE_RUNTIME OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(IS_ABSOLUTE "${MOLAE_RUNTIME}")
      target_link_libraries(molae_openblas INTERFACE ${MOLAE_RUNTIME})
    endif()
  endforeach()
  target_link_libraries(molae_openblas INTERFACE m)
endif()
message(STATUS "molae: OpenBLAS from ${MOLAE_OPENBLAS_LIBRARY}")
