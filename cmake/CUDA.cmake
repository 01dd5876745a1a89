# The CUDA backend, a shared library of its own beside the addon, where there is a CUDA compiler. It needs neither a GPU
# nor a driver to build; scripts/cuda-toolkit.sh installs a compiler from PyPI.
set(MOLAE_CUDA AUTO CACHE STRING "Build the CUDA library: ON, OFF or AUTO (where there is a CUDA compiler)")
set_property(CACHE MOLAE_CUDA PROPERTY STRINGS AUTO ON OFF)

if(MOLAE_CUDA STREQUAL "OFF")
  message(STATUS "molae: building without the CUDA library (MOLAE_CUDA is OFF)")
  return()
endif()
if(MOLAE_SANITIZE)
  message(STATUS "molae: building without the CUDA library (nvcc does not take -fsanitize)")
  return()
endif()
# Unset, CMake would build for the oldest GPUs that nvcc knows. Machine code for A100 and H100/H200, PTX for what follows.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
endif()
include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE) # look again: it may have been installed since
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(MOLAE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "MOLAE_CUDA is ON but there is no CUDA compiler. Set CUDACXX, or see scripts/cuda-toolkit.sh")
  endif()
  message(STATUS "molae: no CUDA compiler, building without the CUDA library (scripts/cuda-toolkit.sh installs one)")
  return()
endif()

enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13.0)
  if(MOLAE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "molae needs nvcc 13.0 or newer, but ${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_VERSION}")
  endif()
  message(STATUS "molae: nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 13.0, building without the CUDA library")
  return()
endif()
# CMake learnt of C++20 in CUDA with 3.26 or so; older ones can be told.
foreach(kind STANDARD EXTENSION)
  if(NOT CMAKE_CUDA20_${kind}_COMPILE_OPTION)
    set(CMAKE_CUDA20_${kind}_COMPILE_OPTION "-std=c++20")
  endif()
endforeach()
list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
find_path(MOLAE_CUDA_INCLUDE cusolverDn.h HINTS ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES} NO_DEFAULT_PATH)
if(NOT MOLAE_CUDA_INCLUDE)
  message(FATAL_ERROR "The CUDA toolkit of ${CMAKE_CUDA_COMPILER} lacks the headers of cuSOLVER (and cuBLAS)")
endif()

file(GLOB MOLAE_CUDA_SOURCES CONFIGURE_DEPENDS native/cuda/api/*.cc native/cuda/kernels/*.cu)
# The parts of core that both sides of the library boundary need; each has its own copy.
set(MOLAE_CUDA_CORE native/core/activation.cc native/core/tensor/dtype.cc native/core/error.cc native/core/expect.cc
  native/core/expert_layer.cc native/core/tensor/tensor.cc)
# Instructions of sm_90a are in no other architecture.
file(GLOB MOLAE_HOPPER_SOURCES CONFIGURE_DEPENDS native/cuda/kernels/hopper/*.cu)
add_library(molae_cuda_hopper OBJECT ${MOLAE_HOPPER_SOURCES})
set_target_properties(molae_cuda_hopper PROPERTIES CUDA_ARCHITECTURES 90a-real)
add_library(molae_cuda MODULE ${MOLAE_CUDA_SOURCES} ${MOLAE_CUDA_CORE})
set_target_properties(molae_cuda PROPERTIES
  PREFIX lib SUFFIX .so
  LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cmake/cuda_exports.map)
foreach(library molae_cuda molae_cuda_hopper)
  set_target_properties(${library} PROPERTIES
    CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
    CUDA_RUNTIME_LIBRARY Static
    CUDA_VISIBILITY_PRESET hidden)
  target_include_directories(${library} PRIVATE native)
  target_include_directories(${library} SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_compile_options(${library} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr --threads=2 -Xfatbin=-compress-all>)
endforeach()
target_link_options(molae_cuda PRIVATE
  LINKER:--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cmake/cuda_exports.map LINKER:--gc-sections)
target_link_libraries(molae_cuda PRIVATE molae_cuda_hopper ${CMAKE_DL_LIBS} Threads::Threads)
message(STATUS "molae: CUDA library with ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
