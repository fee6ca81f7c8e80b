// Instead of native/detect.cpp in a library whose AVX-512 (VT_AVX512) or also AMX (VT_AMX) is emulated: they are there.
#include "detect.h"

const char* why_not(Isa isa) {
#if defined(VT_AMX)
    return isa == kNeon ? "this is another architecture" : "";
#else
    return isa == kNeon ? "this is another architecture" : isa == kAmx ? "only AVX-512 is emulated" : "";
#endif
}
