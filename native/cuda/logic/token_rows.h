#pragma once

#include "core/decoder.h"
#include "cuda/logic/decoder_kernel.h"
#include "cuda/logic/error_record.h"
#include "cuda/logic/number.h"

// Copies that a block makes for one token.
namespace molae::cuda {

inline constexpr int kRowThreads = 256;

// out[t] = table[ids[t]], widened. An id that does not exist is reported, and its row is zero.
struct GatherRows {
  static constexpr int kThreads = kRowThreads;
  using Shared = NoShared;
  DType dtype;
  const void* table;  // [rows, width]
  int64_t rows, width;
  const int32_t* ids;  // [tokens]
  int64_t tokens;
  float* out;  // [tokens, width]
  unsigned long long* error;

  int64_t blocks() const { return tokens; }
  template <class Block>
  MOLAE_HD void run(const Block& block, Shared&) const {
    const int64_t token = block.index();
    const int32_t id = ids[token];
    const bool known = id >= 0 && id < rows;
    block.each_thread_unsynced([&](int thread) {
      if (!known && thread == 0) report_error(error, error_record(InputError::TokenOutOfRange, token, id));
      for (int64_t i = thread; i < width; i += kThreads) {
        out[token * width + i] = known ? load_as<float>(dtype, table, id * width + i) : 0.0f;
      }
    });
  }
};

// See HeadColumns.
struct CopyHeadColumns {
  static constexpr int kThreads = kRowThreads;
  using Shared = NoShared;
  const float* from;  // [tokens, from_heads * from_size]
  float* to;          // [tokens, heads * to_size]
  int64_t tokens;
  int64_t from_size, to_size;
  HeadColumns columns;

  int64_t blocks() const { return tokens; }
  template <class Block>
  MOLAE_HD void run(const Block& block, Shared&) const {
    const int64_t token = block.index();
    const float* source = from + token * columns.from_heads * from_size + columns.from_offset;
    float* target = to + token * columns.heads * to_size + columns.to_offset;
    block.each_thread_unsynced([&](int thread) {
      for (int64_t i = thread; i < columns.heads * columns.width; i += kThreads) {
        const int64_t head = i / columns.width;
        const int64_t column = i % columns.width;
        const int64_t from_head = columns.from_heads == 1 ? 0 : head;
        target[head * to_size + column] = source[from_head * from_size + column];
      }
    });
  }
};

}  // namespace molae::cuda
