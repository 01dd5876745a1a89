#pragma once

namespace molae {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Looks for some tenths of a millisecond whether a condition holds: as long as a thread waits for another one's last
// tile, after which the next stage or the next token follows sooner than a futex wakes anybody. With a fifth of it the
// second thread of an EPYC often slept at the end of a pass, and joined the next one up to 75 us late.
template <class Condition>
void spin_until(Condition holds) {
  constexpr int kSpins = 10000;
  for (int spins = 0; spins < kSpins && !holds(); ++spins) pause();
}

}  // namespace molae
