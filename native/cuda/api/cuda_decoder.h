#pragma once

#include <memory>

#include "core/decoder.h"
#include "cuda/api/gpu.h"

namespace molae::cuda {

// Works on `gpu`, which must outlive it.
std::unique_ptr<Decoder> make_decoder(Gpu& gpu);

}  // namespace molae::cuda
