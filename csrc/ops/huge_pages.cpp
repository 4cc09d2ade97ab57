#include "ops/huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sumprod {

void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kWorthIt = int64_t(4) << 20;
  constexpr uintptr_t kPage = 4096;  // of the smallest size: madvise() wants whole ones
  if (bytes < kWorthIt) return;
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage,
                  last = (begin + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  // Only a hint: where it fails (larger pages, huge ones switched off) nothing is lost.
  (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace sumprod
