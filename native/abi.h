// The C ABI of Vitrail's kernels: what every exported function has in common. Each area's functions stand in its own header.
//
// Plain C types only, no exceptions across the border, no state but the pool and the chosen instruction set. Pointers
// are to dense row-major memory that the caller keeps alive; sizes are int64_t; the caller has checked shapes.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define VT_EXPORT extern "C" __declspec(dllexport)
#else
#define VT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Raised whenever a signature changes, so that Python never calls a library that was built from other sources.
constexpr int64_t kAbiVersion = 6;

// Element types of activations, as Python passes them.
enum DataType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };

// Rows of a matrix that lie side by side in every layout of panels.
constexpr int64_t kPanelRows = 16;
