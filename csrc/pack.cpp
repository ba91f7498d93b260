// Weights into panels and back. A panel holds 16 rows: first the scales of all its groups [groups][16] f16
// (then the minimums, where the scheme has them), padded to 64 bytes, then the codes in the order in which
// a kernel multiplies them: for each four columns, 16 rows x 4 columns. Four-bit codes share their bytes
// between eight columns: columns 0-3 in the low nibble, 4-7 in the high one. Six-bit codes come by sixteen
// columns: their low four bits as four-bit codes do, in 128 bytes, then in 64 bytes the upper two, those of
// columns 0-3 lowest. No instruction set asks for another order, so a packed file is good on every machine.
#include <string.h>

#include "half.h"
#include "kernels.h"

static bool packable(const Sm3Matrix& w) {
    const bool known = w.kind == SM3_W4 || ((w.kind == SM3_W6 || w.kind == SM3_W8) && !w.has_min && !w.has_table);
    return known && w.group > 0 && w.group % 32 == 0 && w.cols % w.group == 0 && w.rows > 0;
}

// The code of (row within the panel, column): some bits in one byte, of six a second byte for the upper two.
struct CodePlace {
    int64_t at, top_at;
    int shift, top_shift;

    CodePlace(const Sm3Matrix& w, int64_t row, int64_t col) : at(row * 4 + col % 4), top_at(at), shift(0), top_shift(0) {
        if (w.kind == SM3_W8) {
            at += col / 4 * 64;
            return;
        }
        shift = int(col / 4 % 2 * 4), top_shift = int(col / 4 % 4 * 2);
        at += w.kind == SM3_W4 ? col / 8 * 64 : col / 16 * 192 + col / 8 % 2 * 64;
        top_at += col / 16 * 192 + 128;
    }
    void put(const Sm3Matrix& w, uint8_t* codes, uint8_t code) const {
        const int low = w.kind == SM3_W8 ? code : code & 15;
        codes[at] = uint8_t(codes[at] | low << shift);
        if (w.kind == SM3_W6) codes[top_at] = uint8_t(codes[top_at] | (code >> 4 & 3) << top_shift);
    }
    int get(const Sm3Matrix& w, const uint8_t* codes) const {
        if (w.kind == SM3_W8) return codes[at];
        const int low = codes[at] >> shift & 15;
        return w.kind == SM3_W6 ? low | (codes[top_at] >> top_shift & 3) << 4 : low;
    }
};

SM3_API int64_t sm3_packed_size(const Sm3Matrix* matrix) {
    return packable(*matrix) ? panel_count(*matrix) * panel_bytes(*matrix) : -1;
}

SM3_API int32_t sm3_pack(const Sm3Matrix* matrix, const uint8_t* codes, const float* scales, const float* mins,
                         void* out) {
    const Sm3Matrix& w = *matrix;
    if (!packable(w) || (w.has_min && !mins)) return -1;
    const int64_t groups = w.cols / w.group;
    memset(out, 0, size_t(panel_count(w) * panel_bytes(w)));
    for (int64_t row = 0; row < w.rows; row++) {
        uint8_t* panel = (uint8_t*)out + row / PANEL * panel_bytes(w);
        uint16_t* head = (uint16_t*)panel + row % PANEL;
        for (int64_t g = 0; g < groups; g++) {
            head[g * PANEL] = half(scales[row * groups + g]);
            if (w.has_min) head[(groups + g) * PANEL] = half(mins[row * groups + g]);
        }
        uint8_t* to = panel + panel_scale_bytes(w);
        for (int64_t col = 0; col < w.cols; col++) CodePlace(w, row % PANEL, col).put(w, to, codes[row * w.cols + col]);
    }
    return 0;
}

SM3_API int32_t sm3_unpack_rows(const Sm3Matrix* matrix, int64_t first_row, int64_t row_count, float* out) {
    const Sm3Matrix& w = *matrix;
    if (first_row < 0 || row_count < 0 || first_row + row_count > w.rows) return -1;
    for (int64_t row = first_row; row < first_row + row_count; row++, out += w.cols) {
        if (w.kind == SM3_BF16) {
            const uint16_t* from = (const uint16_t*)w.data + row * w.cols;
            for (int64_t col = 0; col < w.cols; col++) {
                const uint32_t bits = uint32_t(from[col]) << 16;
                memcpy(out + col, &bits, 4);
            }
            continue;
        }
        const uint8_t* panel = (const uint8_t*)w.data + row / PANEL * panel_bytes(w);
        const uint16_t* head = (const uint16_t*)panel + row % PANEL;
        const uint8_t* codes = panel + panel_scale_bytes(w);
        const int64_t groups = w.cols / w.group;
        for (int64_t g = 0; g < groups; g++) {
            const float scale = from_half(head[g * PANEL]), min = w.has_min ? from_half(head[(groups + g) * PANEL]) : 0.0f;
            for (int64_t col = g * w.group; col < (g + 1) * w.group; col++) {
                const int code = CodePlace(w, row % PANEL, col).get(w, codes);
                out[col] = scale * float(w.has_table ? w.table[code] : code - w.zero) + min;
            }
        }
    }
    return 0;
}
