// Fewer page faults for large fresh memory.
#pragma once

#include <cstdint>

namespace sumprod {

// Asks the system to back memory that has not been touched yet by huge pages. Filling tens of
// megabytes otherwise takes a page fault every 4 KB, which costs as much as computing what is
// written. Small memory is left alone; so are systems without huge pages.
void prefer_huge_pages(void* memory, int64_t bytes);

}  // namespace sumprod
