// What the machine can run and where memory comes from: the parts that ask the system.
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(SM3_X86)
static bool machine_has(int32_t isa) {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    switch (isa) {
        case SM3_PORTABLE: return true;
        case SM3_AVX2: return avx2;
        case SM3_AVX512: return avx512;
        case SM3_AVX512_BF16: return avx512 && __builtin_cpu_supports("avx512bf16");
        default: return false;
    }
}
static const Kernels* const TABLE[] = {&kernels_portable, &kernels_avx2, &kernels_avx512, &kernels_avx512bf16};
constexpr int32_t ISAS = 4;
#else
static bool machine_has(int32_t isa) { return isa == SM3_PORTABLE; }
static const Kernels* const TABLE[] = {&kernels_portable};
constexpr int32_t ISAS = 1;
#endif

const Kernels* find_kernels(int32_t isa);
const Kernels* find_kernels(int32_t isa) {
    return isa >= 0 && isa < ISAS && machine_has(isa) ? TABLE[isa] : nullptr;
}

SM3_API int32_t sm3_built_isas(void) { return (1 << ISAS) - 1; }
SM3_API int32_t sm3_best_isa(void) {
    int32_t best = SM3_PORTABLE;
    for (int32_t isa = 0; isa < ISAS; isa++)
        if (machine_has(isa)) best = isa;
    return best;
}

#if defined(__linux__)
constexpr int64_t HUGE = 2 << 20;
SM3_API void* sm3_alloc(int64_t size) {
    if (size <= 0) return nullptr;
    // Over-allocates to align on a huge page, then gives the ends back.
    const int64_t whole = round_up(size, HUGE) + HUGE;
    char* raw = static_cast<char*>(mmap(nullptr, size_t(whole), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (raw == MAP_FAILED) return nullptr;
    char* start = reinterpret_cast<char*>(round_up(int64_t(raw), HUGE));
    char* end = start + round_up(size, HUGE);
    if (start > raw) munmap(raw, size_t(start - raw));
    if (raw + whole > end) munmap(end, size_t(raw + whole - end));
    madvise(start, size_t(end - start), MADV_HUGEPAGE);
    return start;
}
SM3_API void sm3_free(void* memory, int64_t size) {
    if (memory) munmap(memory, size_t(round_up(size, HUGE)));
}
#else
SM3_API void* sm3_alloc(int64_t size) { return size > 0 ? calloc(1, size_t(size)) : nullptr; }
SM3_API void sm3_free(void* memory, int64_t) { free(memory); }
#endif
