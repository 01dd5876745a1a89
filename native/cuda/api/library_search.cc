#include "cuda/api/library_search.h"

#include <dlfcn.h>
#include <glob.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>

#include "core/error.h"

namespace molae::cuda {
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::vector<std::string> split_path(const std::string& list) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= list.size()) {
    const size_t end = std::min(list.find(':', begin), list.size());
    if (end > begin) parts.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::vector<std::string> matches(const std::string& pattern) {
  std::vector<std::string> found;
  glob_t result{};
  if (glob(pattern.c_str(), 0, nullptr, &result) == 0) {
    found.assign(result.gl_pathv, result.gl_pathv + result.gl_pathc);
  }
  globfree(&result);
  return found;
}

void add(std::vector<std::string>& list, const std::string& item) {
  if (std::find(list.begin(), list.end(), item) == list.end()) list.push_back(item);
}

// Two folders up.
std::string prefix_of(const std::string& executable) {
  const size_t bin = executable.rfind('/');
  const size_t prefix = bin == std::string::npos || bin == 0 ? std::string::npos : executable.rfind('/', bin - 1);
  return prefix == std::string::npos ? "" : executable.substr(0, prefix);
}

// The virtual environment, if it is one, and the installation that the python3 in PATH belongs to: not run, only looked
// at. In a virtual environment python3 is a link to that of the installation.
std::vector<std::string> python_prefixes() {
  for (const std::string& folder : split_path(environment("PATH"))) {
    const std::string file = folder + "/python3";
    if (access(file.c_str(), X_OK) != 0) continue;
    char real[PATH_MAX];
    if (!realpath(file.c_str(), real)) continue;
    std::vector<std::string> prefixes;
    if (access((folder + "/../pyvenv.cfg").c_str(), R_OK) == 0) prefixes.push_back(folder + "/..");
    prefixes.push_back(prefix_of(real));
    return prefixes;
  }
  return {};
}

std::vector<std::string> site_packages() {
  std::vector<std::string> prefixes = python_prefixes();
  prefixes.insert(prefixes.begin(), {environment("VIRTUAL_ENV"), environment("CONDA_PREFIX")});
  prefixes.push_back("/usr/local");
  if (!environment("HOME").empty()) prefixes.push_back(environment("HOME") + "/.local");
  std::vector<std::string> folders;
  for (const std::string& prefix : prefixes) {
    if (prefix.empty()) continue;
    for (const char* kind : {"/lib/python3*/site-packages", "/lib/python3*/dist-packages"}) {
      for (const std::string& folder : matches(prefix + kind)) add(folders, folder);
    }
  }
  for (const std::string& folder : split_path(environment("PYTHONPATH"))) add(folders, folder);
  return folders;
}

// Folders to look in after the loader's own.
std::vector<std::string> search_folders() {
  std::vector<std::string> folders;
  for (const char* name : {"CUDA_PATH", "CUDA_HOME"}) {
    const std::string root = environment(name);
    if (root.empty()) continue;
    add(folders, root + "/lib64");
    add(folders, root + "/lib");
  }
  add(folders, "/usr/local/cuda/lib64");
  add(folders, "/usr/local/cuda-13/lib64");
  for (const std::string& site : site_packages()) {
    for (const std::string& folder : matches(site + "/nvidia/*/lib")) add(folders, folder);
  }
  return folders;
}

std::string path_of(void* handle, const std::string& name) {
  link_map* map = nullptr;
  return dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map && map->l_name && *map->l_name ? map->l_name : name;
}

bool try_open(OpenLibrary& library, const std::string& name) {
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle) {
    library.handle = handle;
    library.path = path_of(handle, name);
    return true;
  }
  const char* reason = dlerror();
  library.tried.push_back(reason ? reason : name);
  return false;
}

}  // namespace

OpenLibrary open_library(const std::string& soname) {
  OpenLibrary library;
  if (try_open(library, soname)) return library;
  for (const std::string& folder : search_folders()) {
    const std::string file = folder + "/" + soname;
    if (access(file.c_str(), R_OK) != 0) {
      library.tried.push_back(file + ": not there");
    } else if (try_open(library, file)) {
      return library;
    }
  }
  return library;
}

OpenLibrary require_library(const std::string& soname, const std::string& purpose) {
  OpenLibrary library = open_library(soname);
  if (library.handle) return library;
  std::string places;
  for (const std::string& place : library.tried) places += "\n  " + place;
  fail(ErrorCode::DeviceUnavailable, soname, " is missing, which ", purpose,
       " needs. Install the CUDA 13 toolkit and set CUDA_PATH, or install NVIDIA's wheels of it into the active Python."
       " Tried:",
       places);
}

}  // namespace molae::cuda
