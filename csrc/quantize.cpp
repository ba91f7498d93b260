// Weights to packed panels: rounding of floats, panels spread over threads.
#include <atomic>
#include <exception>

#include "quantize.h"
#include "threads.h"

static QuantizePanel quantizer_of(int32_t isa) {
#if defined(SM3_X86)
    if (isa >= SM3_AVX512 && quantize_panel_avx512) return quantize_panel_avx512;
    if (isa >= SM3_AVX2 && quantize_panel_avx2) return quantize_panel_avx2;
#endif
    return quantize_panel_portable;
}

// What the quantizer knows to choose codes for: zero in the middle, a minimum, or a table of ascending points.
static bool quantizable(const Sm3Matrix& w) {
    if (sm3_packed_size(&w) < 0 || w.group > 128) return false;
    if (w.has_table) {
        for (int i = 0; i < 15; i++)
            if (w.table[i] >= w.table[i + 1]) return false;
        return w.kind == SM3_W4 && !w.has_min && w.table[15] > 0;
    }
    if (w.kind == SM3_W4) return w.zero == (w.has_min ? 0 : 8);
    return w.zero == (w.kind == SM3_W6 ? 32 : 128) && !w.has_min;
}

SM3_API int32_t sm3_quantize(const Sm3Matrix* matrix, const void* weights, int32_t is_bf16, void* out,
                             int32_t threads, int32_t isa) {
    const Sm3Matrix& w = *matrix;
    const QuantizePanel quantize = find_kernels(isa) ? quantizer_of(isa) : nullptr;
    if (!quantize || !quantizable(w) || threads < 1) return -1;
    const Source from{weights, is_bf16 != 0};
    std::atomic<int32_t> worst{ROUNDED};
    try {
        ThreadPool pool(threads);
        pool.run(panel_count(w), [&](int64_t panel) {
            const Rounding rounding = quantize(w, from, panel, (uint8_t*)out + panel * panel_bytes(w));
            if (rounding != ROUNDED) worst = rounding;
        });
    } catch (const std::exception&) {  // no thread to be had
        return -1;
    }
    return worst;
}
