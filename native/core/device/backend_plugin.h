#pragma once

#include <cstddef>
#include <cstdint>

// The boundary between molae and a backend in a library of its own (libmolae_cuda.so): one C function that returns this
// table. Backend is a C++ interface, so both sides have to come from one build: `build` says so, and a library that
// differs is refused before anything else of it is used.
namespace molae {

class Backend;

inline constexpr uint32_t kBackendAbi = 2;

// An error on its way across the boundary. Exceptions do not cross it: two libraries that hide their symbols have each
// their own type information of molae::Error, and whether a handler in one recognizes what the other threw depends on
// the C++ runtime.
struct PluginFailure {
  int32_t code = 0;  // ErrorCode
  char message[2048] = {};
};

struct BackendPlugin {
  uint32_t abi;          // kBackendAbi
  uint32_t table_bytes;  // sizeof(BackendPlugin)
  const char* build;     // backend_build()

  // Calls line(sink, key, value) for everything worth knowing: "available" (true or false), "reason", "driver",
  // "device", "library", "tried". Never fails.
  void (*probe)(void* sink, void (*line)(void* sink, const char* key, const char* value));

  // A new backend for device `index`, or null and a failure. Its buffers name `owner` as the backend they belong to.
  // Handlers of atexit run last-registered first, and `stop_queues` is one of ours: a library that has handlers of its
  // own, or opens others that do, registers it again after them, so that nothing runs while they tear down.
  Backend* (*create)(int32_t index, const Backend* owner, void (*stop_queues)(), PluginFailure* failure);

  // Runs body(context), which may call any method of the backend; false and a failure where it threw. The handler is
  // inside the library, next to what throws.
  bool (*invoke)(void (*body)(void* context), void* context, PluginFailure* failure);

  // Closes down what create() made. Buffers may outlive it.
  void (*destroy)(Backend* backend);
};

using BackendEntry = const BackendPlugin* (*)();

#ifdef MOLAE_BUILD_VERSION  // only for the two files that compare it
// What both sides must have in common: the version, the headers of core, the C++ ABI.
inline const char* backend_build() {
#define MOLAE_TEXT_OF(x) #x
#define MOLAE_TEXT(x) MOLAE_TEXT_OF(x)
  return "molae " MOLAE_BUILD_VERSION ", GCC ABI " MOLAE_TEXT(__GXX_ABI_VERSION) ", C++ " MOLAE_TEXT(__cplusplus);
#undef MOLAE_TEXT
#undef MOLAE_TEXT_OF
}
#endif

}  // namespace molae
