#include "native/cuda/taking_turns.h"

#include <thread>

#include "native/harness.h"

namespace molae::test {
namespace {

thread_local int this_thread = -1;

}  // namespace

void TakingTurns::run(const std::vector<std::function<void()>>& bodies) {
  states_.assign(bodies.size(), State());
  error_ = nullptr;
  std::vector<std::thread> threads;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    choose_next();
    for (size_t i = 0; i < bodies.size(); ++i) {
      threads.emplace_back([this, i, &bodies] {
        this_thread = static_cast<int>(i);
        try {
          std::unique_lock<std::mutex> lock(mutex_);
          changed_.wait(lock, [&] { return error_ || turn_ == this_thread; });
          if (error_) return;
          lock.unlock();
          bodies[i]();
          lock.lock();
          states_[i].done = true;
          choose_next();
          changed_.notify_all();
        } catch (const Stopped&) {
        } catch (...) {
          fail(std::current_exception());
        }
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  if (error_) std::rethrow_exception(error_);
}

void TakingTurns::step() {
  if (!chance(0.3)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  give_turn(lock);
}

void TakingTurns::wait(const std::function<bool()>& condition) {
  std::unique_lock<std::mutex> lock(mutex_);
  states_[this_thread].condition = &condition;
  give_turn(lock);
  states_[this_thread].condition = nullptr;
}

void TakingTurns::give_turn(std::unique_lock<std::mutex>& lock) {
  const int self = this_thread;
  choose_next();
  if (turn_ != self) changed_.notify_all();
  changed_.wait(lock, [&] { return error_ || turn_ == self; });
  if (error_) throw Stopped();
}

void TakingTurns::choose_next() {
  while (by_itself && chance(0.5) && by_itself()) continue;
  do {
    std::vector<int> candidates;
    bool all_done = true;
    for (size_t i = 0; i < states_.size(); ++i) {
      all_done = all_done && states_[i].done;
      if (ready(states_[i])) candidates.push_back(static_cast<int>(i));
    }
    if (all_done) return;
    if (!candidates.empty()) {
      turn_ = candidates[random_() % candidates.size()];
      return;
    }
  } while (by_itself && by_itself());
  error_ = std::make_exception_ptr(Failure{"all threads wait for each other"});
  changed_.notify_all();
}

void TakingTurns::fail(std::exception_ptr error) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_) error_ = std::move(error);
  changed_.notify_all();
}

}  // namespace molae::test
