// Detection of instruction sets by CPUID, XGETBV, HWCAP and sysctl. See detect.h.
#include "detect.h"

#if defined(__x86_64__) || defined(_M_X64)
#define VT_X86 1
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(VT_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

const char* const kOtherArchitecture = "this is another architecture";

#if defined(VT_X86)

struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

// Which register states the operating system saves when it switches threads.
uint64_t saved_states() {
    if (!(cpuid(1, 0).ecx & bit_OSXSAVE)) return 0;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t(high) << 32) | low;
}

bool has(uint64_t value, uint64_t bits) { return (value & bits) == bits; }

// Linux grants the tile registers (8 KiB per thread) only to processes that request them.
bool tiles_permitted() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

}  // namespace

const char* why_not(Isa isa) {
    const Registers basic = cpuid(1, 0), extended = cpuid(7, 0);
    const uint64_t states = saved_states();
    switch (isa) {
        case kPortable:
            return "";
        case kAvx2:
            if (!has(states, 0x6)) return "the operating system does not save AVX registers";
            if (!has(basic.ecx, bit_FMA | bit_F16C) || !has(extended.ebx, bit_AVX2))
                return "the processor lacks AVX2, FMA or F16C";
            return "";
        case kAvx512:
            if (!has(states, 0xe6)) return "the processor or the operating system lacks AVX-512 registers";
            if (!has(extended.ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ) ||
                !has(extended.ecx, bit_AVX512VNNI))
                return "the processor lacks AVX-512 F, BW, VL, DQ or VNNI";
            return "";
        case kAmx:
            if (*why_not(kAvx512)) return why_not(kAvx512);
            if (!has(extended.edx, (1u << 24) | (1u << 25) | (1u << 22))) return "the processor lacks AMX tiles, int8 or bf16";
            if (!has(states, 0x60000)) return "the operating system does not save AMX tiles";
            if (!tiles_permitted()) return "the operating system refused AMX tiles to this process";
            return "";
        default:
            return kOtherArchitecture;
    }
}

#elif defined(__aarch64__)

bool has_dot_product() {
#if defined(__linux__)
    constexpr unsigned long kAsimdDotProduct = 1ul << 20;
    return (getauxval(AT_HWCAP) & kAsimdDotProduct) != 0;
#elif defined(__APPLE__)
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value;
#else
    return false;
#endif
}

}  // namespace

const char* why_not(Isa isa) {
    if (isa == kPortable) return "";
    if (isa != kNeon) return kOtherArchitecture;
    return has_dot_product() ? "" : "the processor lacks the dot product instructions";
}

#else

}  // namespace

const char* why_not(Isa isa) { return isa == kPortable ? "" : kOtherArchitecture; }

#endif
