#include "cpu/linalg/blas_kernels.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <mutex>
#include <string_view>

#include "cpu/linalg/blas.h"
#include "cpu/system/processor.h"

// Not there in an OpenBLAS that was built for one processor: it has no choice.
extern "C" {
__attribute__((weak)) void gotoblas_dynamic_init(void);
__attribute__((weak)) void gotoblas_dynamic_quit(void);
char* openblas_get_corename(void);
}

namespace molae::cpu {
namespace {

constexpr char kChoice[] = "OPENBLAS_CORETYPE";

// OpenBLAS's names of what it has for each of our instruction sets, the first the one to ask for; the others are as
// good.
constexpr std::string_view kAvx2Cores[] = {"Haswell", "Zen", "Excavator"};
constexpr std::string_view kAvx512Cores[] = {"SkylakeX", "Cooperlake", "SapphireRapids", "Zen"};

template <size_t Count>
void take_one_of(const std::string_view (&cores)[Count]) {
  if (std::find(std::begin(cores), std::end(cores), openblas_get_corename()) != std::end(cores)) return;
  setenv(kChoice, cores[0].data(), 1);
  gotoblas_dynamic_quit();
  gotoblas_dynamic_init();
  unsetenv(kChoice);  // other copies of OpenBLAS, and child processes, are not ours to decide for
}

void choose() {
  if (!gotoblas_dynamic_init || !gotoblas_dynamic_quit || std::getenv(kChoice)) return;
  switch (instructions()) {
    case Instructions::Plain:
      return;  // what it found itself
    case Instructions::Avx2:
      return take_one_of(kAvx2Cores);
    case Instructions::Avx512:
      return take_one_of(kAvx512Cores);
  }
}

}  // namespace

void choose_blas_kernels() {
  static std::once_flag chosen;
  std::call_once(chosen, choose);
}

}  // namespace molae::cpu
