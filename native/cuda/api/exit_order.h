#pragma once

namespace molae::cuda {

// Handlers of atexit run last-registered first. The CUDA runtime, its driver and NVIDIA's libraries have some, which
// take away what kernels in flight need: whoever opens one of them registers ours again, so that it runs before theirs.

// What stops our queues, from the other side of the plugin's boundary. May be called again, with the same.
void set_stop_queues(void (*stop_queues)());

// Registers it, after everything that has been opened so far.
void stop_queues_first();

}  // namespace molae::cuda
