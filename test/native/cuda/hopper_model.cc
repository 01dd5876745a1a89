#include "native/cuda/hopper_model.h"

#include <cstring>
#include <new>
#include <utility>

#include "native/cuda/hopper_on_host.h"
#include "native/harness.h"

namespace molae::test {
namespace {

using cuda::WeightMap;
using cuda::hopper::Barrier;
using cuda::hopper::WeightMapArguments;

constexpr std::align_val_t kSharedAlignment{1024};
constexpr uint64_t kEncoded = 0x74656e736f726d61;

// CU_TENSOR_MAP_SWIZZLE_128B: bits 4 to 6 of an address in shared memory are exclusive-ored with bits 7 to 9.
uint32_t swizzle128(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

}  // namespace

WeightMap encode_on_host(const WeightMapArguments& arguments) {
  // The driver's conditions.
  expect(is_half(arguments.dtype), "a tensor map of halves");
  expect(reinterpret_cast<uintptr_t>(arguments.address) % 16 == 0, "a tensor's address must be a multiple of 16");
  expect(arguments.row_stride % 16 == 0 && arguments.row_stride < uint64_t{1} << 40, "a stride is a multiple of 16");
  for (int i = 0; i < 2; ++i) {
    expect(arguments.sizes[i] > 0 && arguments.sizes[i] <= uint64_t{1} << 32, "a tensor's size");
    expect(arguments.box[i] > 0 && arguments.box[i] <= 256 && arguments.element_steps[i] == 1, "a box's size");
  }
  expect(arguments.box[0] * 2 <= 128 && arguments.box[0] * 2 % 16 == 0, "a box in rows of the swizzle");
  WeightMap map{};
  map.words[0] = kEncoded;
  map.words[1] = reinterpret_cast<uintptr_t>(arguments.address);
  map.words[2] = arguments.sizes[0];
  map.words[3] = arguments.sizes[1];
  map.words[4] = arguments.row_stride;
  map.words[5] = arguments.box[0];
  map.words[6] = arguments.box[1];
  return map;
}

// --- Block
// -------------------------------------------------------------------------------------------------------------

HopperBlock::HopperBlock(size_t shared_bytes, uint64_t seed)
    : bytes_(shared_bytes),
      shared_(static_cast<unsigned char*>(::operator new(shared_bytes, kSharedAlignment))),
      unfenced_(shared_bytes, 0),
      turns_(seed) {
  expect(shared_bytes <= 227 * 1024 - 1024, "a block's shared memory: ", shared_bytes, " bytes");
  std::memset(shared_, 0xff, shared_bytes);
  first_address_ = static_cast<uint32_t>(1024 * (1 + turns_.random()() % 4));
  turns_.by_itself = [this] { return land_something(); };
}

HopperBlock::~HopperBlock() { ::operator delete(shared_, kSharedAlignment); }

uint32_t HopperBlock::address(const void* pointer) const {
  const auto offset = static_cast<const unsigned char*>(pointer) - shared_;
  expect(offset >= 0 && static_cast<size_t>(offset) < bytes_, "an address outside of shared memory");
  return first_address_ + static_cast<uint32_t>(offset);
}

HopperBlock::BarrierState& HopperBlock::state(const Barrier& barrier) {
  const auto found = barriers_.find(&barrier);
  expect(found != barriers_.end(), "a barrier that nobody initialized");
  return found->second;
}

void HopperBlock::initialize(const Barrier& barrier, int arrivals) {
  barriers_[&barrier] = {arrivals, arrivals, 0, 0, {}, {}};
}

void HopperBlock::complete_phases(BarrierState& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.arrivals;
  barrier.copied_before = std::exchange(barrier.copied, {});
  ++barrier.phase;
}

void HopperBlock::arrive(const Barrier& barrier, int64_t expected_bytes) {
  BarrierState& at = state(barrier);
  at.bytes += expected_bytes;
  expect(at.pending > 0, "more arrivals than a phase has");
  --at.pending;
  complete_phases(at);
}

const std::vector<uint32_t>& HopperBlock::wait(const Barrier& barrier, uint32_t parity) {
  expect(parity <= 1, "a parity of ", parity);
  BarrierState& at = state(barrier);
  turns_.wait([&] { return (at.phase & 1) != parity; });
  return at.copied_before;
}

void HopperBlock::start_box(const WeightMap& map, int32_t inner, int32_t row, void* to, const Barrier& barrier) {
  expect(map.words[0] == kEncoded, "what is not a tensor map");
  expect(address(to) % 128 == 0, "a box goes to a multiple of 128 bytes");
  expect(inner >= 0 && row >= 0 && static_cast<uint64_t>(inner) < map.words[2] &&
             static_cast<uint64_t>(row) < map.words[3],
         "a box that is outside of its tensor");
  poison(address(to), map.words[5] * 2 * map.words[6]);
  boxes_.push_back({&map, inner, row, address(to), &barrier});
}

// One of the boxes that are on their way, in any order, or what some threads have copied.
bool HopperBlock::land_something() {
  if (boxes_.empty() && arrivals_.empty()) return false;
  if (!boxes_.empty() && (arrivals_.empty() || turns_.chance(0.5))) {
    land_a_box();
    return true;
  }
  for (uint64_t count = 1 + turns_.random()() % 64; count > 0 && !arrivals_.empty(); --count) {
    land_an_arrival(std::next(arrivals_.begin(), turns_.random()() % arrivals_.size())->first);
  }
  return true;
}

void HopperBlock::land_a_box() {
  std::swap(boxes_[turns_.random()() % boxes_.size()], boxes_.back());
  const Box box = boxes_.back();
  boxes_.pop_back();
  const uint64_t* words = box.map->words;
  const auto* data = reinterpret_cast<const unsigned char*>(words[1]);
  for (uint64_t row = 0; row < words[6]; ++row) {
    for (uint64_t k = 0; k < words[5]; ++k) {
      const uint64_t y = box.row + row, x = box.inner + k;
      const uint32_t to = swizzle128(box.to + static_cast<uint32_t>(row * words[5] * 2 + k * 2));
      const bool inside = x < words[2] && y < words[3];
      std::memset(at(to), 0, 2);
      if (inside) std::memcpy(at(to), data + y * words[4] + x * 2, 2);
    }
  }
  BarrierState& barrier = state(*box.barrier);
  barrier.bytes -= static_cast<int64_t>(words[5] * 2 * words[6]);
  complete_phases(barrier);
}

void HopperBlock::poison(uint32_t address, size_t bytes) {
  const uint32_t offset = address - first_address_;
  expect(offset + bytes <= bytes_, "a write beyond shared memory");
  std::memset(shared_ + offset, 0xff, bytes);
  for (size_t i = 0; i < bytes; ++i) unfenced_[offset + i] = 0;
}

void HopperBlock::start_copy(const Copy& copy) { poison(copy.to, sizeof copy.bytes); }

void HopperBlock::arrive_after(std::vector<Copy> copies, const Barrier& barrier, int thread) {
  arrivals_[thread].push_back({std::move(copies), &barrier});
}

void HopperBlock::land_an_arrival(int thread) {
  auto& arrivals = arrivals_.at(thread);
  BarrierState& barrier = state(*arrivals.front().barrier);
  const Barrier& arrived = *arrivals.front().barrier;
  for (const Copy& copy : arrivals.front().copies) {
    std::memcpy(at(copy.to), copy.bytes, sizeof copy.bytes);
    std::memset(&unfenced_[copy.to - first_address_], 0xff, sizeof copy.bytes);
    barrier.copied.push_back(copy.to);
  }
  arrivals.pop_front();
  if (arrivals.empty()) arrivals_.erase(thread);
  arrive(arrived, 0);
}

void HopperBlock::land_copies_of(int thread) {
  while (arrivals_.contains(thread)) land_an_arrival(thread);
}

void HopperBlock::fence(const std::vector<uint32_t>& copied, int group) {
  for (const uint32_t address : copied) {
    for (size_t i = 0; i < sizeof(Copy::bytes); ++i) {
      unfenced_[address - first_address_ + i] &= static_cast<uint8_t>(~(1u << group));
    }
  }
}

uint16_t HopperBlock::operand(uint64_t descriptor, int row, int k, int group) const {
  const auto start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const auto stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  expect(descriptor >> 62 == 1 && (descriptor >> 49 & 7) == 0, "a descriptor of 128-byte swizzle");
  const uint32_t address = swizzle128(start + row / 8 * stride + row % 8 * 128 + k * 2);
  expect(address >= first_address_ && address - first_address_ + 1 < bytes_, "an operand outside of shared memory");
  expect((unfenced_[address - first_address_] >> group & 1) == 0, "the tensor cores read what no fence has shown them");
  uint16_t value;
  std::memcpy(&value, at(address), sizeof value);
  return value;
}

// --- Group
// -------------------------------------------------------------------------------------------------------------

void HopperGroup::copy16(void* to, const void* from, int bytes) const {
  expect(waited_, "tokens were read before the wait");
  expect(address(to) % 16 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0, "16 bytes, aligned");
  HopperBlock::Copy copy{address(to), {}};
  std::memcpy(copy.bytes, from, bytes);
  block_.start_copy(copy);
  copies_[thread_].push_back(copy);
}

void HopperGroup::arrive_after_copies(Barrier& barrier) const {
  block_.arrive_after(std::exchange(copies_[thread_], {}), barrier, thread_);
}

void HopperGroup::fence_async() const {
  block_.fence(waited_for_, index_);
  waited_for_.clear();
}

void HopperGroup::copy_box(const WeightMap* map, int32_t inner, int32_t row, void* to, Barrier& barrier) const {
  expect(acquired_.contains(map), "a tensor map without its fence");
  block_.boxes_ahead += !waited_;
  block_.start_box(*map, inner, row, to, barrier);
}

void HopperGroup::commit_products() const {
  products_.emplace_back();
  while (products_.size() > 1 && block_.turns().chance(0.3)) land_products(products_.size() - 2);  // or later
  block_.turns().step();
}

void HopperGroup::land_products(size_t pending) const {
  while (products_.size() - 1 > pending) {
    for (const auto& product : products_.front()) product();
    products_.pop_front();
  }
  block_.turns().step();
}

}  // namespace molae::test
