// What the machine can run and where memory comes from: the parts that ask the system.
#include <stdlib.h>
#include <string.h>

#include <initializer_list>
#include <vector>

#include "kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(SM3_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(SM3_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#if defined(SM3_X86)
#include <cpuid.h>

struct Processor {
    uint32_t one_c = 0, seven_b = 0, seven_c = 0, seven_d = 0, more_a = 0;
    uint64_t saved = 0;  // XCR0: registers that the system keeps for each thread
    Processor() {
        uint32_t a, b, c, d;
        if (__get_cpuid(1, &a, &b, &one_c, &d) && one_c >> 27 & 1) {
            uint32_t low, high;
            __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
            saved = uint64_t(high) << 32 | low;
        }
        if (!__get_cpuid_count(7, 0, &a, &seven_b, &seven_c, &seven_d)) return;
        if (a >= 1) __get_cpuid_count(7, 1, &more_a, &b, &c, &d);
    }
};

static bool all(uint64_t word, std::initializer_list<int> bits) {
    for (int bit : bits)
        if (!(word >> bit & 1)) return false;
    return true;
}

static const Processor& processor() {
    static const Processor p;
    return p;
}

static bool has_avx2() {  // FMA, AVX, F16C; AVX2
    const Processor& p = processor();
    return all(p.saved, {1, 2}) && all(p.one_c, {12, 28, 29}) && all(p.seven_b, {5});
}
static bool has_avxvnni() {
#if defined(SM3_EMULATED)
    return has_avx2();
#else
    return has_avx2() && all(processor().more_a, {4});
#endif
}
static bool has_avx512() {  // F, DQ, BW, VL, VNNI
    const Processor& p = processor();
    return has_avx2() && all(p.saved, {5, 6, 7}) && all(p.seven_b, {16, 17, 30, 31}) && all(p.seven_c, {11});
}
static bool has_avx512bf16() { return has_avx512() && all(processor().more_a, {5}); }

// Whether bytes are added beside products: AMD's processors have ports for it, Intel's share the multipliers'.
static bool adds_beside_products() {
    uint32_t a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(0, &a, &b, &c, &d) && b == 0x68747541 && d == 0x69746e65 && c == 0x444d4163;  // AuthenticAMD
}

static bool has_amx() {  // the system keeps tiles, and the processor has tiles and their products of bf16 and int8
    if (!has_avx512bf16()) return false;
#if defined(SM3_EMULATED)
    return true;
#else
    return all(processor().saved, {17, 18}) && all(processor().seven_d, {22, 24, 25});
#endif
}

// Asks the kernel once for this process's use of tiles.
static bool amx_granted() {
#if defined(SM3_EMULATED)
    return true;
#elif defined(__linux__)
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
    return false;
#endif
}

// A small product of int4 weights through `kernels`: 49 rows, 35 tokens in tiles of 11 and 12, every group of 64.
static std::vector<float> small_int4_product(const Kernels& kernels) {
    constexpr int64_t ROWS = 49, COLS = 192, TOKENS = 35, GROUP = 64, GROUPS = COLS / GROUP;
    Sm3Matrix w{};
    w.kind = SM3_W4, w.group = GROUP, w.zero = 8, w.rows = ROWS, w.cols = COLS;
    std::vector<uint8_t> codes(ROWS * COLS), panels(size_t(sm3_packed_size(&w)));
    std::vector<float> scales(ROWS * GROUPS, 0.013f), rows(COLS * TOKENS), out(ROWS * TOKENS);
    for (size_t i = 0; i < codes.size(); i++) codes[i] = uint8_t(i * 2654435761u >> 28);
    sm3_pack(&w, codes.data(), scales.data(), nullptr, panels.data());
    w.data = panels.data();
    std::vector<int8_t> x(TOKENS * COLS + GROUP);
    std::vector<float> steps(TOKENS * GROUPS + PANEL);
    std::vector<int32_t> sums(steps.size()), pairs(steps.size());
    const int64_t tiles = tile_count(TOKENS, kernels.max_tile);
    for (size_t i = 0; i < rows.size(); i++) rows[i] = float(int(uint32_t(i % COLS + i / COLS * 977) * 2654435761u >> 24) - 128);
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t first = tile_begin(TOKENS, tiles, tile), size = tile_begin(TOKENS, tiles, tile + 1) - first;
        kernels.quantize(rows.data() + first * COLS, COLS, COLS, {GROUP, FOUR_BIT_PEAK}, size, TOKENS >= kernels.tiled_from,
                         {x.data() + first * COLS, steps.data() + first * GROUPS, sums.data() + first * GROUPS, pairs.data() + first * GROUPS});
    }
    kernels.matmul(w, {x.data(), steps.data(), sums.data(), pairs.data(), nullptr, TOKENS, COLS, {GROUP, FOUR_BIT_PEAK}}, 0, panel_count(w), out.data(), ROWS, false);
    return out;
}

// A small product of bf16 weights through `kernels`: 37 rows, `count` of 19 tokens from `first` on. All are integers
// whose sums are exact in any order, or else activations of sizes so unlike that every order rounds in its own way.
static std::vector<float> small_bf16_product(const Kernels& kernels, int64_t first, int64_t count, bool exact) {
    constexpr int64_t ROWS = 37, COLS = 96;
    std::vector<uint16_t> weights(ROWS * COLS), x(size_t(count * COLS + 2));
    for (size_t i = 0; i < weights.size(); i++) {
        const float weight = float(int(uint32_t(i) * 2654435761u >> 28) - 8);
        uint32_t bits;
        memcpy(&bits, &weight, 4);
        weights[i] = uint16_t(bits >> 16);
    }
    Sm3Matrix w{};
    w.kind = SM3_BF16, w.rows = ROWS, w.cols = COLS, w.data = weights.data();
    std::vector<float> rows(size_t(COLS * count)), out(size_t(ROWS * count));
    for (size_t i = 0; i < rows.size(); i++) {
        const float divisor = exact ? 1.0f : float(3 << i % COLS % 13);
        rows[i] = float(int(uint32_t(i % COLS + (size_t(first) + i / COLS) * 977) * 2654435761u >> 24) - 128) / divisor;
    }
    const int64_t tiles = tile_count(count, kernels.max_tile);
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t from = tile_begin(count, tiles, tile), size = tile_begin(count, tiles, tile + 1) - from;
        kernels.to_bf16(rows.data() + from * COLS, COLS, 0, COLS, COLS, size, x.data() + from * COLS);
    }
    kernels.matmul(w, {nullptr, nullptr, nullptr, nullptr, x.data(), count, COLS, {32, 127}}, 0, panel_count(w), out.data(), ROWS, false);
    return out;
}

// bf16 tiles add up in an order of their own, so what is exact must be equal, and the rest the same in any company.
static bool bf16_tiles_are_right() {
    constexpr int64_t TOKENS = 19;
    const Kernels& amx = kernels_amx;
    if (small_bf16_product(amx, 0, TOKENS, true) != small_bf16_product(kernels_avx512bf16, 0, TOKENS, true)) return false;
    const std::vector<float> together = small_bf16_product(amx, 0, TOKENS, false);
    for (int64_t t = 0; t < TOKENS; t++) {
        const std::vector<float> alone = small_bf16_product(amx, t, 1, false);
        if (memcmp(alone.data(), together.data() + t * int64_t(alone.size()), alone.size() * sizeof(float))) return false;
    }
    return true;
}

// AMX is used where the kernel grants it and first products come out as they should.
static const char* why_no_amx() {
    static const char* const reason = [] {
        if (!has_amx()) return "";
        if (!&kernels_amx) return "the compiler that built the library knows no AMX";
        if (!amx_granted()) return "the system refuses AMX tiles to this process";
        const bool int8 = small_int4_product(kernels_amx) == small_int4_product(kernels_avx512);
        return int8 && bf16_tiles_are_right() ? "" : "a product through AMX tiles came out wrong";
    }();
    return reason;
}

static bool machine_has(int32_t isa) {
    switch (isa) {
        case SM3_PORTABLE: return true;
        case SM3_AVX2: return has_avx2();
        case SM3_AVX_VNNI: return has_avxvnni();
        case SM3_AVX512: return has_avx512();
        case SM3_AVX512_BF16: return has_avx512bf16();
        case SM3_ZEN4: return has_avx512bf16() && adds_beside_products();
        case SM3_AMX: return has_amx() && !*why_no_amx();
        default: return false;
    }
}
static const Kernels* const TABLE[SM3_ISAS] = {&kernels_portable, &kernels_avx2, &kernels_avxvnni, &kernels_avx512,
                                               &kernels_avx512bf16, &kernels_zen4, &kernels_amx, nullptr};
#elif defined(SM3_ARM64)
static bool has_dot_products() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
    int32_t has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has;
#else
    return false;
#endif
}
static bool machine_has(int32_t isa) { return isa == SM3_PORTABLE || (isa == SM3_NEON && has_dot_products()); }
static const char* why_no_amx() { return ""; }
static const Kernels* const TABLE[SM3_ISAS] = {&kernels_portable, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, &kernels_neon};
#else
static bool machine_has(int32_t isa) { return isa == SM3_PORTABLE; }
static const char* why_no_amx() { return ""; }
static const Kernels* const TABLE[SM3_ISAS] = {&kernels_portable};
#endif

const Kernels* find_kernels(int32_t isa) {
    return isa >= 0 && isa < SM3_ISAS && machine_has(isa) ? TABLE[isa] : nullptr;
}

SM3_API const char* sm3_amx_missing(void) { return why_no_amx(); }
SM3_API int32_t sm3_usable_isas(void) {
    int32_t usable = 0;
    for (int32_t isa = 0; isa < SM3_ISAS; isa++)
        if (find_kernels(isa)) usable |= 1 << isa;
    return usable;
}

#if defined(__linux__)
SM3_API void* sm3_alloc(int64_t size) {
    if (size <= 0) return nullptr;
    // Over-allocates to align on a huge page, then gives the ends back.
    const int64_t whole = round_up(size, HUGE_PAGE) + HUGE_PAGE;
    char* raw = static_cast<char*>(mmap(nullptr, size_t(whole), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (raw == MAP_FAILED) return nullptr;
    char* start = reinterpret_cast<char*>(round_up(int64_t(raw), HUGE_PAGE));
    char* end = start + round_up(size, HUGE_PAGE);
    if (start > raw) munmap(raw, size_t(start - raw));
    if (raw + whole > end) munmap(end, size_t(raw + whole - end));
    madvise(start, size_t(end - start), MADV_HUGEPAGE);
    return start;
}
SM3_API void sm3_free(void* memory, int64_t size) {
    if (memory) munmap(memory, size_t(round_up(size, HUGE_PAGE)));
}
#else
SM3_API void* sm3_alloc(int64_t size) { return size > 0 ? calloc(1, size_t(size)) : nullptr; }
SM3_API void sm3_free(void* memory, int64_t) { free(memory); }
#endif
