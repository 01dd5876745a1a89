// The one routine of Fortran's run time that LAPACK's code in OpenBLAS calls (gesdd, ormbr and others build option
// strings with it). With it here nothing of libgfortran and libquadmath ends up in the addon: no further licenses, no
// start-up code of another language in the host's process.

#include <algorithm>
#include <cstddef>
#include <cstring>

extern "C" void _gfortran_concat_string(size_t size, char* to, size_t first_size, const char* first, size_t second_size,
                                        const char* second) {
  const size_t head = std::min(size, first_size);
  const size_t tail = std::min(size - head, second_size);
  if (head > 0) std::memcpy(to, first, head);
  if (tail > 0) std::memcpy(to + head, second, tail);
  if (size > head + tail) std::memset(to + head + tail, ' ', size - head - tail);  // Fortran pads with blanks
}
