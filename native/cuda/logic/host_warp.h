#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "cuda/logic/number.h"

// A warp on the host, see host_block.h: what its lanes do by themselves runs lane by lane, what they do together is a
// model of the instruction (PTX ISA, "ldmatrix" and "Matrix fragments for mma.m16n8k16 with floating point type"). The
// GPU's is kernels/device_warp.cuh.
namespace molae::cuda {

class HostWarp {
 public:
  static constexpr int kLanes = 32;

  explicit HostWarp(int first_thread) : first_thread_(first_thread) {}

  int first_thread() const { return first_thread_; }

  template <class Phase>
  void each_lane(Phase phase) const {
    for (int lane = 0; lane < kLanes; ++lane) phase(lane);
  }
  void sync() const {}

  // A variable that every lane has its own of.
  template <class T>
  class Local {
   public:
    explicit Local(const HostWarp&) {}
    T& operator[](int lane) { return values_[lane]; }

   private:
    std::array<T, kLanes> values_;
  };

  // ldmatrix.x4 of 16-bit elements: address(lane) is where row lane % 8 of matrix lane / 8 is, registers(lane) four
  // registers, one of each matrix.
  template <class Address, class Registers>
  static void load_matrices(Address address, Registers registers) {
    for (int lane = 0; lane < kLanes; ++lane) {
      uint32_t* to = registers(lane);
      for (int matrix = 0; matrix < 4; ++matrix) {
        const void* row = address(matrix * 8 + lane / 4);
        if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
          throw std::logic_error("A matrix row that is not aligned was read");
        std::memcpy(to + matrix, static_cast<const char*>(row) + lane % 4 * sizeof(uint32_t), sizeof(uint32_t));
      }
    }
  }

  // mma.sync.m16n8k16: sums(lane) four sums, left(lane) four registers, right(lane) two.
  template <class In, class Sums, class Left, class Right>
  static void multiply_add(Sums sums, Left left, Right right) {
    constexpr int kRows = 16, kColumns = 8, kInner = 16;
    float a[kRows][kInner], b[kColumns][kInner];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int group = lane / 4, within = lane % 4 * 2;
      for (int i = 0; i < 8; ++i) {
        a[group + i / 2 % 2 * 8][within + i % 2 + i / 4 * 8] = half_of<In>(left(lane)[i / 2], i % 2);
      }
      for (int i = 0; i < 4; ++i) b[group][within + i % 2 + i / 2 * 8] = half_of<In>(right(lane)[i / 2], i % 2);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      float* to = sums(lane);
      for (int i = 0; i < 4; ++i) {
        const float* row = a[lane / 4 + i / 2 * 8];
        const float* column = b[lane % 4 * 2 + i % 2];
        for (int k = 0; k < kInner; ++k) to[i] += row[k] * column[k];
      }
    }
  }

 private:
  template <class In>
  static float half_of(uint32_t pair, int which) {
    return to_float(In{static_cast<uint16_t>(pair >> (16 * which))});
  }

  int first_thread_;
};

}  // namespace molae::cuda
