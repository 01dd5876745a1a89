#include <dlfcn.h>

#include "core/error.h"
#include "cuda/api/cublas.h"
#include "cuda/api/cusolver.h"
#include "cuda/api/library_search.h"

namespace molae::cuda {
namespace {

template <class Function>
void resolve(const OpenLibrary& library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library.handle, name));
  if (!function)
    fail(ErrorCode::DeviceUnavailable, library.path, " has no ", name, ": it is too old or not from NVIDIA");
}

Cublas load_cublas() {
  // In a wheel nothing but the folder connects the two; a library that is open already is found by its soname.
  require_library("libcublasLt.so.13", "every matrix product");
  const OpenLibrary library = require_library("libcublas.so.13", "every matrix product");
  Cublas cublas;
#define MOLAE_RESOLVE(name) resolve(library, #name, cublas.name);
  MOLAE_CUBLAS_FUNCTIONS(MOLAE_RESOLVE)
#undef MOLAE_RESOLVE
  cublas.path = library.path;
  return cublas;
}

Cusolver load_cusolver() {
  Cublas::instance();
  open_library("libnvJitLink.so.13");  // what the next one needs, where there is one
  require_library("libcusparse.so.12", "cuSOLVER");
  const OpenLibrary library = require_library("libcusolver.so.12", "factorization");
  Cusolver cusolver;
#define MOLAE_RESOLVE(name) resolve(library, #name, cusolver.name);
  MOLAE_CUSOLVER_FUNCTIONS(MOLAE_RESOLVE)
#undef MOLAE_RESOLVE
  cusolver.path = library.path;
  return cusolver;
}

}  // namespace

// A failed attempt throws and is made again by the next call. Never destroyed.
const Cublas& Cublas::instance() {
  static const Cublas& cublas = *new Cublas(load_cublas());
  return cublas;
}

const Cusolver& Cusolver::instance() {
  static const Cusolver& cusolver = *new Cusolver(load_cusolver());
  return cusolver;
}

}  // namespace molae::cuda
