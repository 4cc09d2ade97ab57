// Aligned scratch memory for kernels: one block per worker, freed with the object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "ops/huge_pages.h"

namespace sumprod {

class Workspace {
 public:
  Workspace(int workers, int64_t bytes_each)
      : stride_((bytes_each + kAlignment - 1) / kAlignment * kAlignment),
        base_(static_cast<std::byte*>(
            ::operator new(static_cast<size_t>(stride_ * workers), std::align_val_t{kAlignment}))) {
    prefer_huge_pages(base_.get(), stride_ * workers);
  }

  void* of(int worker) const { return base_.get() + stride_ * worker; }

 private:
  // A page, so that two workers never share one.
  static constexpr int64_t kAlignment = 4096;
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{kAlignment}); }
  };
  int64_t stride_;
  std::unique_ptr<std::byte, Free> base_;
};

}  // namespace sumprod
