#include "cuda/api/staging.h"

#include <algorithm>
#include <cstring>

#include "cuda/api/check.h"

namespace molae::cuda {

Staging::~Staging() {
  for (Slot& slot : slots_) {
    if (slot.done) cudaEventDestroy(slot.done);
    if (slot.data) cudaFreeHost(slot.data);
  }
}

Staging::Slot& Staging::next_slot() {
  Slot& slot = slots_[next_];
  next_ = 1 - next_;
  if (!slot.data) check(cudaHostAlloc(&slot.data, kBytes, cudaHostAllocDefault), "allocating pinned memory");
  if (!slot.done) {
    check(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming), "creating an event");
  } else {
    check(cudaEventSynchronize(slot.done), "waiting for a copy");
  }
  return slot;
}

void Staging::upload(const void* host, void* device, size_t bytes) {
  for (size_t begin = 0; begin < bytes; begin += kBytes) {
    const size_t length = std::min(kBytes, bytes - begin);
    Slot& slot = next_slot();
    std::memcpy(slot.data, static_cast<const char*>(host) + begin, length);
    check(cudaMemcpyAsync(static_cast<char*>(device) + begin, slot.data, length, cudaMemcpyHostToDevice, stream_),
          "copying to the GPU");
    check(cudaEventRecord(slot.done, stream_), "copying to the GPU");
  }
}

void Staging::download(const void* device, void* host, size_t bytes) {
  const auto queue = [&](size_t begin) -> Slot& {
    Slot& slot = next_slot();
    check(cudaMemcpyAsync(slot.data, static_cast<const char*>(device) + begin, std::min(kBytes, bytes - begin),
                          cudaMemcpyDeviceToHost, stream_),
          "copying from the GPU");
    check(cudaEventRecord(slot.done, stream_), "copying from the GPU");
    return slot;
  };
  Slot* current = bytes > 0 ? &queue(0) : nullptr;
  for (size_t begin = 0; begin < bytes; begin += kBytes) {
    Slot* following = begin + kBytes < bytes ? &queue(begin + kBytes) : nullptr;
    check(cudaEventSynchronize(current->done), "copying from the GPU");
    std::memcpy(static_cast<char*>(host) + begin, current->data, std::min(kBytes, bytes - begin));
    current = following;
  }
}

}  // namespace molae::cuda
