#pragma once

// The only include of napi.h: its settings (NAPI_VERSION, C++ exceptions) come from CMakeLists.txt.
#include <napi.h>
