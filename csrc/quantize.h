// Rounding weights to a matrix's scheme, one panel of 16 rows at a time: what an instruction set provides.
#pragma once
#include "kernels.h"

enum Rounding : int32_t { ROUNDED = 0, NOT_FINITE = 1, SCALE_TOO_LARGE = 2 };

struct Source {
    const void* weights;  // [rows][cols] of float, or of bf16
    bool bf16;
};

// Writes panel number `panel` of `w` to `out`. The same bits on every instruction set.
using QuantizePanel = Rounding (*)(const Sm3Matrix& w, const Source& from, int64_t panel, uint8_t* out);
Rounding quantize_panel_portable(const Sm3Matrix& w, const Source& from, int64_t panel, uint8_t* out);
Rounding quantize_panel_avx2(const Sm3Matrix& w, const Source& from, int64_t panel, uint8_t* out) SM3_IF_BUILT;
Rounding quantize_panel_avx512(const Sm3Matrix& w, const Source& from, int64_t panel, uint8_t* out) SM3_IF_BUILT;
