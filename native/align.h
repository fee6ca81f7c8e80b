// Integer arithmetic on sizes: rounding up, alignment to cache lines, bytes of an element type.
//
// In an unnamed namespace for the reason given in vec.h: these functions are compiled once per instruction set.
#pragma once

#include "abi.h"

namespace {

constexpr int64_t kCacheLine = 64;  // bytes

constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// The smallest multiple of `multiple` that is not below n.
constexpr int64_t round_up(int64_t n, int64_t multiple) { return divide_up(n, multiple) * multiple; }

// Bytes of a buffer whose successor starts on a cache line.
constexpr int64_t aligned(int64_t bytes) { return round_up(bytes, kCacheLine); }

// Bytes of one element of a DataType.
constexpr int64_t size_of(int32_t type) { return type == kFloat32 ? 4 : type == kInt8 ? 1 : 2; }

}  // namespace
