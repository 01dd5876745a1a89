#pragma once

#include <memory>

#include "core/decoder.h"
#include "cpu/context.h"

namespace molae::cpu {

std::unique_ptr<Decoder> make_decoder(Context context);

}  // namespace molae::cpu
