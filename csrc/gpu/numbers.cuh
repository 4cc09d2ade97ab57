// Numbers as tensors hold them, and constants.
#pragma once

#include "gpu/device.h"

namespace sumprod::gpu {

template <class Real>
SUMPROD_BOTH constexpr Real infinity() {
  return Real(__builtin_huge_val());
}

// Half types: their bits, as torch stores them.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

SUMPROD_DEVICE float as_real(float x) { return x; }
SUMPROD_DEVICE double as_real(double x) { return x; }
SUMPROD_DEVICE float as_real(BFloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
SUMPROD_DEVICE float as_real(Float16 x) {
  const unsigned sign = unsigned(x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | rest << 13);  // infinities and NaN
  // The exponent's bias is 112 more for floats; multiplying moves it and normalises what is denormal.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}

// NaN is taken for the smaller one: one instruction.
SUMPROD_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
SUMPROD_DEVICE double larger(double a, double b) { return fmax(a, b); }

}  // namespace sumprod::gpu
