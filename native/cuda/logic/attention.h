#pragma once

#include <algorithm>
#include <vector>

#include "core/decoder.h"
#include "cuda/logic/decoder_kernel.h"
#include "cuda/logic/number.h"

// Attention with an online softmax (Milakov & Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135): scores are
// never all in memory. A block goes through the keys of some rows, tile by tile, and keeps for each row the largest
// score so far, the sum of exp(score - largest) and the sum of values weighted so; when the largest grows, both sums
// shrink.
//
// A row is a query of one head. The heads that share keys and values are rows of the same tiles, so that one query of
// many heads reads the keys once. Wide values are cut into blocks of columns, each of which computes the scores again.
// Everything is f32. Where a sequence has few queries, as in decoding, there are few tiles of rows: then its keys are
// cut into parts, which blocks of their own go through, and JoinAttention puts together what those leave. Whether and
// where depends on the sequence alone, so its results do not depend on what it is computed with.
namespace molae::cuda {

// Rows of a sequence and one key/value head that one block takes: row r is query r / share of head r % share of the
// `share` heads that the key/value head serves.
struct AttentionTile {
  int64_t query_begin, key_begin;  // of the sequence
  int64_t past;                    // keys before the one of its first query
  int64_t first, rows;             // rows of the sequence
  int64_t part_begin, part_end;    // keys of the sequence that it looks at, of those that its rows see
  int64_t part;  // the first of its rows of parts; negative: its sums are complete, and are the output
};

// A row whose keys were cut into parts.
struct JoinedRow {
  int64_t token, head;  // the head of those that share keys and values
  int64_t part;         // its first row of parts,
  int64_t step;         // how many there are from one to the next,
  int64_t parts;        // and how many of them are its own
};

// What a part leaves of a row: the largest score, the sum of exp(score - largest), the values weighted so.
MOLAE_HD int64_t part_size(const AttentionSpec& spec) { return 2 + spec.value_size; }

struct Attention {
  static constexpr int kRows = 32;
  static constexpr int kKeys = 64;       // of a tile of scores
  static constexpr int kInner = 32;      // elements of queries and keys at a time
  static constexpr int kValueKeys = 32;  // keys whose values are in shared memory at a time
  static constexpr int kValues = 128;    // columns of values that a block takes
  // Thread (y, x) of 8 x 16 has every 8th row and every 16th column.
  static constexpr int kSideX = 16;
  static constexpr int kSideY = 8;
  static constexpr int kThreads = kSideX * kSideY;
  static constexpr int kThreadRows = kRows / kSideY;
  static constexpr int kThreadKeys = kKeys / kSideX;
  static constexpr int kThreadValues = kValues / kSideX;

  // Padded by one, so that threads that read a column read different banks.
  struct Shared {
    float queries[kRows][kInner + 1];
    float keys[kKeys][kInner + 1];
    float scores[kRows][kKeys + 1];
    float values[kValueKeys][kValues];
    float largest[kRows];
    float shrink[kRows];  // what the sums so far are multiplied by
    int64_t query_at[kRows], out_at[kRows];
    int64_t visible_begin[kRows], visible_end[kRows];  // keys of the sequence
  };

  const float* q;
  const float* keys;
  const float* values;
  float* out;
  float* parts;  // [rows of parts][kv_heads][part_size]
  const AttentionTile* tiles;
  int64_t tile_count;
  AttentionSpec spec;

  int64_t value_blocks() const { return blocks_of(spec.value_size, kValues); }
  int64_t blocks() const { return tile_count * spec.kv_heads * value_blocks(); }

  template <class Block>
  MOLAE_HD void run(const Block& block, Shared& shared) const;
};

// Joins the parts of each row, always in the same order. A block has a row.
struct JoinAttention {
  static constexpr int kThreads = 128;
  using Shared = NoShared;
  const float* parts;
  float* out;
  const JoinedRow* rows;
  int64_t row_count;
  AttentionSpec spec;

  int64_t blocks() const { return row_count * spec.kv_heads; }

  template <class Block>
  MOLAE_HD void run(const Block& block, Shared&) const {
    const JoinedRow row = rows[block.index() / spec.kv_heads];
    const int64_t kv_head = block.index() % spec.kv_heads;
    const int64_t stride = row.step * spec.kv_heads * part_size(spec);
    const float* first = parts + (row.part * spec.kv_heads + kv_head) * part_size(spec);
    const int64_t head = kv_head * (spec.heads / spec.kv_heads) + row.head;
    float* to = out + (row.token * spec.heads + head) * spec.value_size;
    block.each_thread_unsynced([&](int thread) {
      float largest = -INFINITY;
      for (int64_t i = 0; i < row.parts; ++i) largest = first[i * stride] > largest ? first[i * stride] : largest;
      for (int64_t column = thread; column < spec.value_size; column += kThreads) {
        float weight = 0, sum = 0;
        for (int64_t i = 0; i < row.parts; ++i) {
          const float* part = first + i * stride;
          const float share_of_part = part[0] == -INFINITY ? 0.0f : ::expf(part[0] - largest);
          weight += share_of_part * part[1];
          sum += share_of_part * part[2 + column];
        }
        to[column] = sum / weight;
      }
    });
  }
};

// Two tiles of scores: enough work for a block, and enough blocks for a GPU from a few thousand keys on.
inline constexpr int64_t kPartKeys = 2 * Attention::kKeys;
// Sequences with more rows of a key/value head have tiles enough, and their parts would take much memory.
inline constexpr int64_t kMostRowsInParts = 128;

struct AttentionPlan {
  std::vector<AttentionTile> tiles;
  std::vector<JoinedRow> joined;
  int64_t part_rows = 0;
};

// The tiles of all sequences.
inline AttentionPlan plan_attention(const std::vector<Sequence>& sequences, const AttentionSpec& spec) {
  const int64_t share = spec.heads / spec.kv_heads;
  AttentionPlan plan;
  for (const Sequence& s : sequences) {
    const int64_t queries = s.query_end - s.query_begin;
    const int64_t keys = s.key_end - s.key_begin;
    const int64_t past = keys - queries;
    for (int64_t first = 0; first < queries * share; first += Attention::kRows) {
      const int64_t rows = std::min<int64_t>(Attention::kRows, queries * share - first);
      AttentionTile tile{s.query_begin, s.key_begin, past, first, rows, 0, keys, -1};
      const int64_t first_seen = past + first / share + 1 - spec.window;
      const int64_t begin = (spec.window > 0 ? std::max<int64_t>(0, first_seen) : 0) / kPartKeys;
      const int64_t end = blocks_of(past + (first + rows - 1) / share + 1, kPartKeys);
      if (queries * share > kMostRowsInParts || end - begin <= 1) {
        plan.tiles.push_back(tile);
        continue;
      }
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t token = s.query_begin + (first + row) / share;
        plan.joined.push_back({token, (first + row) % share, plan.part_rows + row, rows, end - begin});
      }
      for (int64_t i = begin; i < end; ++i) {
        tile.part_begin = i * kPartKeys;
        tile.part_end = (i + 1) * kPartKeys;
        tile.part = plan.part_rows;
        plan.tiles.push_back(tile);
        plan.part_rows += rows;
      }
    }
  }
  return plan;
}

// One block's work.
template <class Block>
class AttentionPass {
 public:
  using A = Attention;

  MOLAE_HD AttentionPass(const Block& block, const Attention& args, Attention::Shared& shared)
      : block_(block), args_(args), shared_(shared), scores_(block), sums_(block) {
    const int64_t value_blocks = (args.spec.value_size + A::kValues - 1) / A::kValues;
    const int64_t rest = block.index() / value_blocks;
    value_begin_ = block.index() % value_blocks * A::kValues;
    kv_head_ = rest % args.spec.kv_heads;
    tile_ = args.tiles[rest / args.spec.kv_heads];
  }

  MOLAE_HD void run() {
    begin();
    // What some row sees of the part: from the first key of the first row to the last one of the last row.
    const int64_t end = shared_.visible_end[tile_.rows - 1];
    for (int64_t key = shared_.visible_begin[0]; key < end; key += A::kKeys) {
      score(key, end);
      rescale();
      for (int64_t at = 0; at < A::kKeys && key + at < end; at += A::kValueKeys) add_values(key, at, end);
    }
    if (tile_.part < 0) {
      store();
    } else {
      store_part();
    }
  }

 private:
  struct Scores {
    float of[A::kThreadRows][A::kThreadKeys];
  };
  struct Sums {
    float values[A::kThreadRows][A::kThreadValues];
    float weights[A::kThreadRows];
  };
  static MOLAE_HD int y_of(int thread) { return thread / A::kSideX; }
  static MOLAE_HD int x_of(int thread) { return thread % A::kSideX; }

  MOLAE_HD void begin() {
    const AttentionSpec& spec = args_.spec;
    block_.each_thread([&](int thread) {
      Sums& sums = sums_[thread];
      MOLAE_UNROLL
      for (int i = 0; i < A::kThreadRows; ++i) {
        sums.weights[i] = 0;
        MOLAE_UNROLL
        for (int j = 0; j < A::kThreadValues; ++j) sums.values[i][j] = 0;
      }
      if (thread >= A::kRows) return;
      const int64_t share = spec.heads / spec.kv_heads;
      const int64_t row = tile_.first + thread;
      const int64_t token = tile_.query_begin + row / share;
      const int64_t head = kv_head_ * share + row % share;
      const int64_t end = tile_.past + row / share + 1;
      const int64_t begin = spec.window > 0 && end > spec.window ? end - spec.window : 0;
      shared_.query_at[thread] = (token * spec.heads + head) * spec.head_size;
      shared_.out_at[thread] = (token * spec.heads + head) * spec.value_size;
      shared_.visible_begin[thread] = begin > tile_.part_begin ? begin : tile_.part_begin;
      shared_.visible_end[thread] = end < tile_.part_end ? end : tile_.part_end;
      shared_.largest[thread] = -INFINITY;
    });
  }

  // scores[row][j] = scale * query . key of the keys from `key` on; -infinity where the row does not see the key.
  MOLAE_HD void score(int64_t key, int64_t end) {
    const int64_t size = args_.spec.head_size;
    block_.each_thread_unsynced([&](int thread) {
      MOLAE_UNROLL
      for (int i = 0; i < A::kThreadRows; ++i) {
        MOLAE_UNROLL
        for (int j = 0; j < A::kThreadKeys; ++j) scores_[thread].of[i][j] = 0;
      }
    });
    for (int64_t from = 0; from < size; from += A::kInner) {
      block_.each_thread([&](int thread) { load_queries_and_keys(thread, key, end, from, size); });
      block_.each_thread([&](int thread) { multiply_scores(thread); });
    }
    block_.each_thread([&](int thread) {
      MOLAE_UNROLL
      for (int i = 0; i < A::kThreadRows; ++i) {
        const int row = y_of(thread) + i * A::kSideY;
        MOLAE_UNROLL
        for (int j = 0; j < A::kThreadKeys; ++j) {
          const int column = x_of(thread) + j * A::kSideX;
          const bool visible =
              row < tile_.rows && key + column >= shared_.visible_begin[row] && key + column < shared_.visible_end[row];
          shared_.scores[row][column] = visible ? args_.spec.scale * scores_[thread].of[i][j] : -INFINITY;
        }
      }
    });
  }

  MOLAE_HD void load_queries_and_keys(int thread, int64_t key, int64_t end, int64_t from, int64_t size) {
    const int column = thread % A::kInner;
    const bool inside = from + column < size;
    for (int row = thread / A::kInner; row < A::kRows; row += A::kThreads / A::kInner) {
      shared_.queries[row][column] = inside && row < tile_.rows ? args_.q[shared_.query_at[row] + from + column] : 0.0f;
    }
    const int64_t stride = args_.spec.kv_heads * size;
    const float* first = args_.keys + (tile_.key_begin + key) * stride + kv_head_ * size + from + column;
    for (int row = thread / A::kInner; row < A::kKeys; row += A::kThreads / A::kInner) {
      shared_.keys[row][column] = inside && key + row < end ? first[row * stride] : 0.0f;
    }
  }

  MOLAE_HD void multiply_scores(int thread) {
    for (int k = 0; k < A::kInner; ++k) {
      float rows[A::kThreadRows], columns[A::kThreadKeys];
      MOLAE_UNROLL
      for (int i = 0; i < A::kThreadRows; ++i) rows[i] = shared_.queries[y_of(thread) + i * A::kSideY][k];
      MOLAE_UNROLL
      for (int j = 0; j < A::kThreadKeys; ++j) columns[j] = shared_.keys[x_of(thread) + j * A::kSideX][k];
      MOLAE_UNROLL
      for (int i = 0; i < A::kThreadRows; ++i) {
        MOLAE_UNROLL
        for (int j = 0; j < A::kThreadKeys; ++j) scores_[thread].of[i][j] += rows[i] * columns[j];
      }
    }
  }

  // scores become exp(score - largest), with the largest of all keys so far.
  MOLAE_HD void rescale() {
    block_.each_thread([&](int thread) {
      if (thread >= A::kRows) return;
      const float before = shared_.largest[thread];
      float largest = before;
      for (int j = 0; j < A::kKeys; ++j) {
        largest = shared_.scores[thread][j] > largest ? shared_.scores[thread][j] : largest;
      }
      shared_.largest[thread] = largest;
      // A row that has seen nothing yet has sums of 0, whatever they are multiplied by.
      shared_.shrink[thread] = before == -INFINITY ? 0.0f : ::expf(before - largest);
    });
    block_.each_thread([&](int thread) {
      for (int i = thread; i < A::kRows * A::kKeys; i += A::kThreads) {
        float& score = shared_.scores[i / A::kKeys][i % A::kKeys];
        score = score == -INFINITY ? 0.0f : ::expf(score - shared_.largest[i / A::kKeys]);
      }
      Sums& sums = sums_[thread];
      MOLAE_UNROLL
      for (int i = 0; i < A::kThreadRows; ++i) {
        const float shrink = shared_.shrink[y_of(thread) + i * A::kSideY];
        sums.weights[i] *= shrink;
        MOLAE_UNROLL
        for (int j = 0; j < A::kThreadValues; ++j) sums.values[i][j] *= shrink;
      }
    });
  }

  // sums += scores times values, for the keys from key + at on.
  MOLAE_HD void add_values(int64_t key, int64_t at, int64_t end) {
    const int64_t size = args_.spec.value_size;
    block_.each_thread([&](int thread) {
      const int64_t stride = args_.spec.kv_heads * size;
      const float* first =
          args_.values + (tile_.key_begin + key + at) * stride + kv_head_ * size + value_begin_ + thread;
      static_assert(A::kThreads == A::kValues);
      for (int row = 0; row < A::kValueKeys; ++row) {
        const bool inside = value_begin_ + thread < size && key + at + row < end;
        shared_.values[row][thread] = inside ? first[row * stride] : 0.0f;
      }
    });
    block_.each_thread([&](int thread) {
      Sums& sums = sums_[thread];
      for (int k = 0; k < A::kValueKeys; ++k) {
        float rows[A::kThreadRows], columns[A::kThreadValues];
        MOLAE_UNROLL
        for (int i = 0; i < A::kThreadRows; ++i) rows[i] = shared_.scores[y_of(thread) + i * A::kSideY][at + k];
        MOLAE_UNROLL
        for (int j = 0; j < A::kThreadValues; ++j) columns[j] = shared_.values[k][x_of(thread) + j * A::kSideX];
        MOLAE_UNROLL
        for (int i = 0; i < A::kThreadRows; ++i) {
          sums.weights[i] += rows[i];
          MOLAE_UNROLL
          for (int j = 0; j < A::kThreadValues; ++j) sums.values[i][j] += rows[i] * columns[j];
        }
      }
    });
  }

  MOLAE_HD void store() {
    block_.each_thread_unsynced([&](int thread) {
      each_own_row(thread, tile_.rows, [&](int row, int i) {
        const float weight = sums_[thread].weights[i];
        store_values(thread, args_.out + shared_.out_at[row], i, [&](float sum) { return sum / weight; });
      });
    });
  }

  MOLAE_HD void store_part() {
    const int64_t size = part_size(args_.spec);
    block_.each_thread_unsynced([&](int thread) {
      each_own_row(thread, tile_.rows, [&](int row, int i) {
        float* to = args_.parts + ((tile_.part + row) * args_.spec.kv_heads + kv_head_) * size;
        if (value_begin_ == 0 && x_of(thread) == 0) {
          to[0] = shared_.largest[row];
          to[1] = sums_[thread].weights[i];
        }
        store_values(thread, to + 2, i, [](float sum) { return sum; });
      });
    });
  }

  // Calls visit(row, i) for the rows of the tile that the thread has; i is which of its own.
  template <class Visit>
  static MOLAE_HD void each_own_row(int thread, int64_t rows, Visit visit) {
    MOLAE_UNROLL
    for (int i = 0; i < A::kThreadRows; ++i) {
      const int row = y_of(thread) + i * A::kSideY;
      if (row < rows) visit(row, i);
    }
  }

  // Stores what `of` makes of the thread's sums of values of its row i, to a row of all values.
  template <class Of>
  MOLAE_HD void store_values(int thread, float* to, int i, Of of) {
    MOLAE_UNROLL
    for (int j = 0; j < A::kThreadValues; ++j) {
      const int64_t column = value_begin_ + x_of(thread) + j * A::kSideX;
      if (column < args_.spec.value_size) to[column] = of(sums_[thread].values[i][j]);
    }
  }

  const Block& block_;
  const Attention& args_;
  Attention::Shared& shared_;
  typename Block::template Local<Scores> scores_;
  typename Block::template Local<Sums> sums_;
  AttentionTile tile_;
  int64_t kv_head_, value_begin_;
};

template <class Block>
MOLAE_HD void Attention::run(const Block& block, Shared& shared) const {
  AttentionPass<Block>(block, *this, shared).run();
}

}  // namespace molae::cuda
