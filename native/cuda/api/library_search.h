#pragma once

#include <string>
#include <vector>

namespace molae::cuda {

// A library that was opened by its soname, never to be closed.
struct OpenLibrary {
  void* handle = nullptr;
  std::string path;                // where it came from
  std::vector<std::string> tried;  // the places looked at, in order, with what went wrong
};

// Looks in the loader's own path, CUDA_PATH, /usr/local/cuda, and NVIDIA's pip wheels of the active Python
// (VIRTUAL_ENV, CONDA_PREFIX, PYTHONPATH, the python3 in PATH). handle is null where it is in none of them.
OpenLibrary open_library(const std::string& soname);

// The same; throws DeviceUnavailable with the places that were tried.
OpenLibrary require_library(const std::string& soname, const std::string& purpose);

}  // namespace molae::cuda
