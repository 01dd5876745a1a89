#pragma once

#include "cuda/logic/hopper/matrix_descriptor.h"
#include "cuda/logic/hopper/passes.h"
#include "cuda/logic/hopper/store_tile.h"

// The grouped product of logic/grouped_gemm.h for Hopper: persistent blocks of three warpgroups. The producer fills the
// stages of a ring, weights by the copy engine and gathered tokens by asynchronous copies of 16 bytes; two consumers
// multiply them by wgmma and store the sums. They meet at the ring's barriers only.
//
// `Group` is a warpgroup: the calling thread's own on the GPU (kernels/hopper/device_group.cuh), a model of one in the
// tests (test/native/cuda/hopper_model.h), which runs the same source.
namespace molae::cuda::hopper {

// --- Producer
// ----------------------------------------------------------------------------------------------------------

// The rows of input that a thread copies vectors of: every kRowsAtOnce-th of the tile, from its own on.
template <class Shape>
struct TokenRows {
  static constexpr int kRowsAtOnce = kGroupThreads / kRowVectors;
  static constexpr int kCount = static_cast<int>((Shape::kRows + kRowsAtOnce - 1) / kRowsAtOnce);
  int32_t input[kCount];  // -1: none

  static MOLAE_HD int row(int thread, int i) { return thread / kRowVectors + i * kRowsAtOnce; }
  static MOLAE_HD int vector(int thread) { return thread % kRowVectors; }

  MOLAE_HD void find(int thread, const Factor<typename Shape::In>& factor, const RowTile& tile) {
    MOLAE_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const int32_t at = tile.begin + row(thread, i);
      const bool exists = row(thread, i) < Shape::kRows && at < tile.end;
      input[i] = !exists ? -1 : factor.gather ? factor.gather[at] : at;
    }
  }
};

// One stage of tokens. What is beyond the tile's rows or the inner dimension becomes zero.
template <class Shape, class Group>
MOLAE_HD void copy_tokens(const Group& group, int thread, const TokenRows<Shape>& rows,
                          const Pass<typename Shape::In>& pass, int32_t step, unsigned char* to) {
  constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(typename Shape::In));
  const int vector = rows.vector(thread);
  const int32_t k = step * kStageInner + vector * kVector;
  MOLAE_UNROLL
  for (int i = 0; i < TokenRows<Shape>::kCount; ++i) {
    const int row = rows.row(thread, i);
    if (row >= Shape::kRows) continue;  // more threads than vectors
    const bool valid = rows.input[i] >= 0 && k < pass.inner;
    const auto* input = pass.factor->input;
    group.copy16(to + swizzled(row, vector), valid ? input + rows.input[i] * pass.factor->stride + k : input,
                 valid ? kVectorBytes : 0);
  }
}

template <class Shape, class Group>
MOLAE_HD void copy_weights(const Group& group, const Pass<typename Shape::In>& pass, int32_t step, unsigned char* to,
                           Barrier& full) {
  group.one_thread([&] {
    group.arrive_expecting(full, pass.boxes * kBoxBytes);
    MOLAE_UNROLL
    for (int box = 0; box < Shape::kBoxes; ++box) {
      if (box < pass.boxes)
        group.copy_box(pass.maps[box], step * kStageInner, pass.columns[box], to + box * kBoxBytes, full);
    }
  });
}

template <class Shape, class Group>
MOLAE_HD void acquire_maps(const Group& group, const Pass<typename Shape::In>& pass) {
  group.one_thread([&] {
    MOLAE_UNROLL
    for (int box = 0; box < Shape::kBoxes; ++box) {
      if (box < pass.boxes) group.acquire_map(pass.maps[box]);
    }
  });
}

// Starts the copies of weights into the ring's first stages, before the kernel before this one has ended: those of the
// block's first tile, up to the end of its first pass. How many stages. Reads the tile map and the tables of weights,
// nothing else.
template <class Shape, class Group>
MOLAE_HD int32_t copy_weights_ahead(const Group& group, const HopperGemm<typename Shape::In>& args,
                                    TileShared<Shape>& shared, int64_t block) {
  const TileSchedule schedule = schedule_of<Shape>(args);
  if (block >= schedule.row_tiles * schedule.column_tiles) return 0;
  const int32_t problem = group.load_from_l2(&schedule.tiles[schedule.row_tile(block)].problem);
  if (problem < 0) return 0;
  const OutputTile tile{{problem, 0, 0}, schedule.column(block)};
  if (tile.column >= args.product.first.weights[problem].rows) return 0;
  const auto pass = pass_of<Shape>(args, tile, 0);
  const int32_t stages = pass.steps() < Shape::kStages ? pass.steps() : Shape::kStages;
  acquire_maps<Shape>(group, pass);
  MOLAE_ROLLED
  for (int32_t stage = 0; stage < stages; ++stage) {
    copy_weights<Shape>(group, pass, stage, shared.stages[stage].weights, shared.full[stage]);
  }
  return stages;
}

template <class Shape, class Group>
MOLAE_HD void produce(const Group& group, const HopperGemm<typename Shape::In>& args, TileShared<Shape>& shared,
                      int64_t block, int64_t blocks) {
  const auto& product = args.product;
  RingPosition<Shape::kStages> next;
  int32_t mapped = -1;  // the problem whose maps may be used
  typename Group::template Local<TokenRows<Shape>> rows(group);
  int32_t ahead = copy_weights_ahead<Shape>(group, args, shared, block);
  group.after_previous();
  const auto columns = [&](int32_t problem) { return product.first.weights[problem].rows; };
  schedule_of<Shape>(args).each_tile(block, blocks, columns, [&](const OutputTile& tile) {
    const bool other_maps = tile.rows.problem != mapped;
    mapped = tile.rows.problem;
    MOLAE_ROLLED
    for (int i = 0; i < pass_count<Shape>(args); ++i) {
      const auto pass = pass_of<Shape>(args, tile, i);
      group.each_thread([&](int thread) { rows[thread].find(thread, *pass.factor, tile.rows); });
      if (other_maps) acquire_maps<Shape>(group, pass);
      MOLAE_ROLLED
      for (int32_t step = 0; step < pass.steps(); ++step) {
        auto& stage = shared.stages[next.stage];
        group.wait(shared.empty[next.stage], next.empty_parity());
        if (ahead > 0) {
          --ahead;
        } else {
          copy_weights<Shape>(group, pass, step, stage.weights, shared.full[next.stage]);
        }
        group.each_thread([&](int thread) {
          copy_tokens<Shape>(group, thread, rows[thread], pass, step, stage.tokens);
          group.arrive_after_copies(shared.full[next.stage]);
        });
        next.advance();
      }
    }
  });
  group.each_thread([&](int) { group.await_copies(); });  // none is under way when its thread ends
}

// --- Consumers
// ---------------------------------------------------------------------------------------------------------

// sums += the product of one pass. One stage is multiplied while the next is waited for; a stage goes back to the
// producer when the tensor cores have read it, that is when the product after it is under way.
template <class Shape, int kHalf, int kBoxes, class Group, class Sums>
MOLAE_HD void multiply_pass(const Group& group, int32_t steps, TileShared<Shape>& shared,
                            RingPosition<Shape::kStages>& at, Sums& sums) {
  constexpr int kColumns = Shape::kSwapped ? Shape::kRows : kBoxes * kBoxRows;
  Barrier* previous = nullptr;
  group.each_thread([&](int thread) {
    MOLAE_UNROLL
    for (int sum = 0; sum < fragment_sums(kColumns); ++sum) sums[thread].values[kHalf * Shape::kHalf + sum] = 0;
  });
  MOLAE_ROLLED
  for (int32_t step = 0; step < steps; ++step) {
    auto& stage = shared.stages[at.stage];
    const unsigned char* left = Shape::kSwapped ? stage.weights : stage.tokens;
    const unsigned char* right = Shape::kSwapped ? stage.tokens : stage.weights;
    const uint64_t a = matrix_descriptor(group.address(left + group.index() * kGroupRows * kRowBytes));
    const uint64_t b = matrix_descriptor(group.address(right));
    group.wait(shared.full[at.stage], at.full_parity());
    // The tensor cores read shared memory by another way than the producer's threads have written it.
    group.fence_async();
    group.begin_products(sums);
    MOLAE_UNROLL
    for (int k = 0; k < kInstructions; ++k) {
      group.template multiply<typename Shape::In, kColumns, kHalf * Shape::kHalf>(sums, advanced(a, k), advanced(b, k));
    }
    group.commit_products();
    group.template await_products<1>(sums);
    if (previous) group.arrive_by_warp(*previous);
    previous = &shared.empty[at.stage];
    at.advance();
  }
  group.template await_products<0>(sums);
  if (previous) group.arrive_by_warp(*previous);
}

template <class Shape, class Group>
MOLAE_HD void consume(const Group& group, const HopperGemm<typename Shape::In>& args, TileShared<Shape>& shared,
                      int64_t block, int64_t blocks) {
  const auto& product = args.product;
  RingPosition<Shape::kStages> at;
  group.after_previous();
  typename Group::template Local<typename Shape::Sums> sums(group);
  const auto columns = [&](int32_t problem) { return product.first.weights[problem].rows; };
  schedule_of<Shape>(args).each_tile(block, blocks, columns, [&](const OutputTile& tile) {
    MOLAE_ROLLED
    for (int i = 0; i < pass_count<Shape>(args); ++i) {
      const auto pass = pass_of<Shape>(args, tile, i);
      if (Shape::kBoxes == 1 ? pass.half == 0 : pass.boxes == 1) {
        multiply_pass<Shape, 0, 1>(group, pass.steps(), shared, at, sums);
      } else {
        multiply_pass<Shape, Shape::kBoxes == 1, Shape::kBoxes>(group, pass.steps(), shared, at, sums);
      }
    }
    group.each_thread([&](int thread) { store_tile<Shape>(thread, group.index(), args, tile, sums[thread]); });
  });
}

// --- Block
// -------------------------------------------------------------------------------------------------------------

// By one thread, before the others begin. A stage is full when the copies of every thread of the producer have arrived,
// and the thread that starts the copies of weights, with the bytes that are to come; empty when every warp of the
// consumers has.
template <class Shape, class Group>
MOLAE_HD void initialize(const Group& group, TileShared<Shape>& shared) {
  for (int stage = 0; stage < Shape::kStages; ++stage) {
    group.initialize(shared.full[stage], kGroupThreads + 1);
    group.initialize(shared.empty[stage], kConsumers * kWarps);
  }
}

}  // namespace molae::cuda::hopper
