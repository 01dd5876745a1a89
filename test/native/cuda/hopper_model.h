#pragma once

#include <deque>
#include <functional>
#include <map>
#include <set>

#include "cuda/logic/hopper/grouped_gemm.h"
#include "native/cuda/taking_turns.h"
#include "native/harness.h"

// A model of one block of a Hopper GPU, as far as logic/hopper/grouped_gemm.h uses it, written from the PTX ISA and the
// driver's documentation and not from that code: barriers with phases, transaction counts and parities; the copy engine
// with its 128-byte swizzle; asynchronous copies that land late and arrive at a barrier then; wgmma that reads its
// operands through descriptors, late too; and the fence between what threads write and what the tensor cores read. What
// a real block may do in many orders happens here in a random one.
namespace molae::test {

class HopperBlock {
 public:
  // Shared memory of so many bytes, full of NaN.
  HopperBlock(size_t shared_bytes, uint64_t seed);
  ~HopperBlock();

  unsigned char* shared() { return shared_; }
  uint32_t address(const void* pointer) const;
  TakingTurns& turns() { return turns_; }

  // What happens where a warpgroup waits for the kernel before this one.
  std::function<void()> previous = [] {};
  int64_t boxes_ahead = 0;  // that were started before that

  void initialize(const cuda::hopper::Barrier& barrier, int arrivals);
  void arrive(const cuda::hopper::Barrier& barrier, int64_t expected_bytes);
  // Returns what threads had copied when they arrived.
  const std::vector<uint32_t>& wait(const cuda::hopper::Barrier& barrier, uint32_t parity);

  void start_box(const cuda::WeightMap& map, int32_t inner, int32_t row, void* to,
                 const cuda::hopper::Barrier& barrier);

  // 16 bytes, copied by a thread. They land late, and before that are NaN.
  struct Copy {
    uint32_t to;
    unsigned char bytes[16];
  };
  void start_copy(const Copy& copy);
  // Of one thread: they land one after the other, and then its arrival.
  void arrive_after(std::vector<Copy> copies, const cuda::hopper::Barrier& barrier, int thread);
  void land_copies_of(int thread);
  // Consumer `group` may read by the tensor cores what is at these addresses.
  void fence(const std::vector<uint32_t>& copied, int group);

  // Row `row` and inner element `k` of the operand that a descriptor describes, as consumer `group` reads it.
  uint16_t operand(uint64_t descriptor, int row, int k, int group) const;

 private:
  struct BarrierState {
    int arrivals, pending;
    int64_t bytes;
    uint64_t phase;
    std::vector<uint32_t> copied,
        copied_before;  // in this phase and in the one before it
  };
  struct Arrival {
    std::vector<Copy> copies;
    const cuda::hopper::Barrier* barrier;
  };
  struct Box {
    const cuda::WeightMap* map;
    int32_t inner, row;
    uint32_t to;
    const cuda::hopper::Barrier* barrier;
  };

  BarrierState& state(const cuda::hopper::Barrier& barrier);
  void complete_phases(BarrierState& barrier);
  bool land_something();
  void land_a_box();
  void land_an_arrival(int thread);
  void poison(uint32_t address, size_t bytes);
  unsigned char* at(uint32_t address) const { return shared_ - first_address_ + address; }

  size_t bytes_;
  uint32_t first_address_;
  unsigned char* shared_;
  std::vector<uint8_t> unfenced_;  // by byte: a bit for each consumer
  std::map<const cuda::hopper::Barrier*, BarrierState> barriers_;
  std::vector<Box> boxes_;
  std::map<int, std::deque<Arrival>> arrivals_;  // by thread; none is empty
  TakingTurns turns_;
};

// A warpgroup of the block, for the templates of logic/hopper.
class HopperGroup {
 public:
  static constexpr int kThreads = 128;

  HopperGroup(HopperBlock& block, int index) : block_(block), index_(index), copies_(kThreads) {}

  int index() const { return index_; }
  uint32_t address(const void* pointer) const { return block_.address(pointer); }

  // The kernel before this one may take its time: the other warpgroups get far, mostly.
  void after_previous() const {
    for (int i = 0; i < 10; ++i) block_.turns().step();
    block_.previous();
    waited_ = true;
  }
  template <class T>
  T load_from_l2(const T* from) const {
    return *from;
  }

  template <class T>
  class Local {
   public:
    explicit Local(const HopperGroup&) : values_(kThreads) {}
    T& operator[](int thread) { return values_[thread]; }

   private:
    std::vector<T> values_;
  };

  template <class Phase>
  void each_thread(Phase phase) const {
    const bool forwards = block_.turns().chance(0.5);
    for (int i = 0; i < kThreads; ++i) {
      thread_ = forwards ? i : kThreads - 1 - i;
      phase(thread_);
    }
    block_.turns().step();
  }
  template <class Phase>
  void one_thread(Phase phase) const {
    thread_ = 0;
    phase();
    block_.turns().step();
  }

  void initialize(cuda::hopper::Barrier& barrier, int arrivals) const { block_.initialize(barrier, arrivals); }
  void arrive_by_warp(cuda::hopper::Barrier& barrier) const {
    for (int warp = 0; warp < kThreads / 32; ++warp) {
      block_.arrive(barrier, 0);
      block_.turns().step();
    }
  }
  void arrive_expecting(cuda::hopper::Barrier& barrier, int bytes) const { block_.arrive(barrier, bytes); }
  void wait(cuda::hopper::Barrier& barrier, uint32_t parity) const {
    const std::vector<uint32_t>& copied = block_.wait(barrier, parity);
    waited_for_.insert(waited_for_.end(), copied.begin(), copied.end());
  }

  void copy16(void* to, const void* from, int bytes) const;
  void arrive_after_copies(cuda::hopper::Barrier& barrier) const;
  void await_copies() const { block_.land_copies_of(thread_); }
  void fence_async() const;

  void acquire_map(const cuda::WeightMap* map) const { acquired_.insert(map); }
  void copy_box(const cuda::WeightMap* map, int32_t inner, int32_t row, void* to, cuda::hopper::Barrier& barrier) const;

  template <class Sums>
  void begin_products(Sums&) const {}
  template <class In, int kColumns, int kFirst, class Sums>
  void multiply(Sums& sums, uint64_t a, uint64_t b) const {
    expect(waited_, "a product before the wait");
    products_.back().push_back([this, &sums, a, b] {
      std::vector<float> left(64 * 16), right(16 * kColumns);
      for (int row = 0; row < 64; ++row) {
        for (int k = 0; k < 16; ++k) left[row * 16 + k] = cuda::to_float(In{block_.operand(a, row, k, index_)});
      }
      for (int row = 0; row < kColumns; ++row) {
        for (int k = 0; k < 16; ++k) right[k * kColumns + row] = cuda::to_float(In{block_.operand(b, row, k, index_)});
      }
      std::vector<float> products(kColumns);
      for (int row = 0; row < 64; ++row) {
        std::fill(products.begin(), products.end(), 0.0f);
        for (int k = 0; k < 16; ++k) {
          for (int column = 0; column < kColumns; ++column) {
            products[column] += left[row * 16 + k] * right[k * kColumns + column];
          }
        }
        for (int column = 0; column < kColumns; ++column) {
          // The thread and the register that have this element of D.
          const int thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
          const int place = column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
          sums[thread].values[kFirst + place] += products[column];
        }
      }
    });
  }
  void commit_products() const;
  template <int kPending, class Sums>
  void await_products(Sums&) const {
    land_products(kPending);
  }

 private:
  void land_products(size_t pending) const;

  HopperBlock& block_;
  int index_;
  mutable int thread_ = 0;
  mutable bool waited_ = false;
  mutable std::vector<std::vector<HopperBlock::Copy>> copies_;  // by thread, since its last arrival
  mutable std::vector<uint32_t> waited_for_;                    // and not fenced yet
  mutable std::set<const cuda::WeightMap*> acquired_;
  mutable std::deque<std::vector<std::function<void()>>> products_{1};  // the last group is not committed
};

// The kernel of a tile, in `blocks` persistent blocks: see hopper_on_host.h. Producer, Consumer: their warpgroups.
template <class Shape, class Producer = HopperGroup, class Consumer = HopperGroup>
int64_t run_on_model(const cuda::hopper::HopperGemm<typename Shape::In>& args, int64_t blocks, uint64_t seed,
                     const std::function<void()>& after_previous) {
  using namespace cuda::hopper;
  int64_t boxes_ahead = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    HopperBlock block(sizeof(TileShared<Shape>), seed + b);
    block.previous = after_previous;
    auto& shared = *reinterpret_cast<TileShared<Shape>*>(block.shared());
    initialize<Shape>(HopperGroup(block, 0), shared);
    std::vector<std::function<void()>> groups;
    groups.push_back([&] { produce<Shape>(Producer(block, 0), args, shared, b, blocks); });
    for (int consumer = 0; consumer < kConsumers; ++consumer) {
      groups.push_back([&, consumer] { consume<Shape>(Consumer(block, consumer), args, shared, b, blocks); });
    }
    block.turns().run(groups);
    boxes_ahead += block.boxes_ahead;
  }
  return boxes_ahead;
}

}  // namespace molae::test
