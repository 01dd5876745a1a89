#include "cuda/api/graph.h"

#include "cuda/api/check.h"

namespace molae::cuda {
namespace {

constexpr const char* kCapturing = "capturing a layer's graph (MOLAE_CUDA_LAUNCH=stream does without)";

// Ends the capture in any case: a stream that is left capturing can do nothing else.
class Capture {
 public:
  explicit Capture(cudaStream_t stream) : stream_(stream) {
    // Other threads may allocate meanwhile.
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), kCapturing);
  }
  ~Capture() {
    if (!ended_) cudaStreamEndCapture(stream_, &graph_);
    if (graph_) cudaGraphDestroy(graph_);
    cudaGetLastError();
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaGraph_t end() {
    ended_ = true;
    check(cudaStreamEndCapture(stream_, &graph_), kCapturing);
    return graph_;
  }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  bool ended_ = false;
};

}  // namespace

Graph::Graph(cudaStream_t stream, const std::function<void()>& queue) {
  Capture capture(stream);
  queue();
  check(cudaGraphInstantiate(&executable_, capture.end(), 0), kCapturing);
}

Graph::~Graph() {
  if (executable_) cudaGraphExecDestroy(executable_);
}

void Graph::launch(cudaStream_t stream) const {
  check(cudaGraphLaunch(executable_, stream), "launching a layer's graph");
}

}  // namespace molae::cuda
