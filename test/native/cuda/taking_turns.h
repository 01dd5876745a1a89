#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <random>
#include <vector>

// Threads of which one runs at a time, and which is the random numbers' choice: every interleaving may happen, and the
// same seed gives the same one.
namespace molae::test {

class TakingTurns {
 public:
  explicit TakingTurns(uint64_t seed) : random_(seed) {}

  // Runs all bodies to their end. Throws what one of them threw, or a Failure where all wait for each other.
  void run(const std::vector<std::function<void()>>& bodies);

  // What may happen by itself between the threads' steps: false where there is nothing.
  std::function<bool()> by_itself;

  // From inside a body: others may go first.
  void step();
  // From inside a body: others go first until this holds.
  void wait(const std::function<bool()>& condition);

  std::mt19937_64& random() { return random_; }
  bool chance(double p) { return std::bernoulli_distribution(p)(random_); }

 private:
  struct Stopped {};  // another thread failed
  struct State {
    bool done = false;
    const std::function<bool()>* condition = nullptr;
  };

  bool ready(const State& state) const { return !state.done && (!state.condition || (*state.condition)()); }
  void choose_next();
  void give_turn(std::unique_lock<std::mutex>& lock);
  void fail(std::exception_ptr error);

  std::mt19937_64 random_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<State> states_;
  int turn_ = -1;
  std::exception_ptr error_;
};

}  // namespace molae::test
