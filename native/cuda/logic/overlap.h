#pragma once

#include <utility>

namespace molae::cuda {

// Which kernels of a layer's chain may begin before the one before them has ended (kernels/chained_launch.cuh).
// Products look into the tile map before they wait. So the one behind the sort begins when the sort has ended; those
// after it begin later still, and find the map complete.
class Overlap {
 public:
  explicit Overlap(bool possible) : possible_(possible) {}

  void sorted() { behind_sort_ = true; }
  // For the next kernel that is launched.
  bool next() { return !std::exchange(behind_sort_, false) && possible_; }

 private:
  bool possible_;
  bool behind_sort_ = false;
};

}  // namespace molae::cuda
