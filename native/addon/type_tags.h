#pragma once

#include <cstdint>

#include "addon/node_api.h"

// Tags that tell our wrapped objects from anybody else's: unwrapping a stranger is undefined behaviour. Strangers are
// also the objects of another copy of molae in this process, maybe of another version: where the library was loaded to
// is part of its tags.
namespace molae::addon {

inline char here;  // not const: every copy has its own

inline napi_type_tag own_tag(uint64_t lower, uint64_t upper) {
  return {lower ^ reinterpret_cast<uintptr_t>(&here), upper};
}

inline const napi_type_tag kTensorTag = own_tag(0x8f0d4b7a1f5e4c6dULL, 0x9b1c2a64f2d84e11ULL);
inline const napi_type_tag kDeviceTag = own_tag(0x2b6d93c07d9f4b0aULL, 0xa6f1c8d5e4b24d38ULL);
inline const napi_type_tag kLayerTag = own_tag(0x5d71e0a94c7b41f2ULL, 0x8a3b5c6d7e8f4a92ULL);
inline const napi_type_tag kBasisTag = own_tag(0xc40f6a1b8e2d4d73ULL, 0xb7e9d2f1a0c34f55ULL);
inline const napi_type_tag kCalibratedGroupTag = own_tag(0x3e9b72d45a1c4f86ULL, 0xd2a7f06c91b84e35ULL);
inline const napi_type_tag kCancellationTag = own_tag(0x71a8f3e2d5c64b90ULL, 0x94d6b8a7c1e04f2bULL);

// The wrapped object, null for anything else.
template <class Object>
Object* unwrap(Napi::Value value, const napi_type_tag& tag) {
  if (!value.IsObject() || value.IsArray()) return nullptr;
  const auto object = value.As<Napi::Object>();
  if (!object.CheckTypeTag(&tag)) return nullptr;
  return Napi::ObjectWrap<Object>::Unwrap(object);
}

}  // namespace molae::addon
