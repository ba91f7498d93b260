// Weights that come quantized, into panels: blocks of 32 columns as GGUF files hold them, and rows of four-bit codes
// with scales apart, as bitsandbytes does. Codes stay as they are; only their order changes.
#include <string.h>

#include <exception>

#include "half.h"
#include "kernels.h"
#include "threads.h"

constexpr int64_t BLOCK = 32;  // columns
constexpr uint32_t LOW = 0x0f0f0f0f, HIGH = 0xf0f0f0f0;

static int64_t block_bytes(const Sm3Matrix& w) {
    return 2 * (1 + w.has_min) + code_bytes(w.kind, BLOCK) / PANEL;
}

static bool holds_blocks(const Sm3Matrix& w) {
    if (sm3_packed_size(&w) < 0 || w.group != BLOCK || w.has_table) return false;
    return w.kind == SM3_W4 ? w.zero == (w.has_min ? 0 : 8) : w.kind == SM3_W8 && w.zero == 128 && !w.has_min;
}

static uint32_t four(const uint8_t* from) {
    uint32_t x;
    memcpy(&x, from, 4);
    return x;
}

static void put(uint8_t* to, int step, uint32_t x) { memcpy(to + step * 64, &x, 4); }

// A block's codes: column i and i + 16 share a byte, low nibble first. A panel's: columns i and i + 4.
static void place_w4(const uint8_t* from, uint8_t* to) {
    const uint32_t a = four(from), b = four(from + 4), c = four(from + 8), d = four(from + 12);
    put(to, 0, (a & LOW) | (b & LOW) << 4);
    put(to, 1, (c & LOW) | (d & LOW) << 4);
    put(to, 2, (a & HIGH) >> 4 | (b & HIGH));
    put(to, 3, (c & HIGH) >> 4 | (d & HIGH));
}

static void place_w8(const uint8_t* from, uint8_t* to) {
    for (int i = 0; i < 8; i++) put(to, i, four(from + i * 4) ^ 0x80808080);  // signed codes to codes from 0
}

SM3_API int32_t sm3_pack_blocks(const Sm3Matrix* matrix, const uint8_t* blocks, void* out, int32_t threads) {
    const Sm3Matrix& w = *matrix;
    if (!holds_blocks(w) || threads < 1) return -1;
    const int64_t groups = w.cols / BLOCK, size = block_bytes(w), group_bytes = code_bytes(w.kind, BLOCK);
    try {
        ThreadPool pool(threads);
        pool.run(panel_count(w), [&](int64_t panel) {
            uint8_t* to = (uint8_t*)out + panel * panel_bytes(w);
            uint8_t* codes = to + panel_scale_bytes(w);
            memset(to, 0, size_t(panel_bytes(w)));
            for (int64_t lane = 0; lane < PANEL && panel * PANEL + lane < w.rows; lane++) {
                const uint8_t* from = blocks + (panel * PANEL + lane) * groups * size;
                for (int64_t g = 0; g < groups; g++, from += size) {
                    memcpy(to + (g * PANEL + lane) * 2, from, 2);
                    if (w.has_min) memcpy(to + ((groups + g) * PANEL + lane) * 2, from + 2, 2);
                    const uint8_t* stored = from + 2 * (1 + w.has_min);
                    uint8_t* place = codes + g * group_bytes + lane * 4;
                    if (w.kind == SM3_W4) place_w4(stored, place);
                    else place_w8(stored, place);
                }
            }
        });
    } catch (const std::exception&) {  // no thread to be had
        return -1;
    }
    return 0;
}

// Rows of codes: two columns in a byte, the first in the high nibble.
static uint8_t code(const uint8_t* row, int64_t col) {
    return uint8_t(col % 2 ? row[col / 2] & 15 : row[col / 2] >> 4);
}

static bool holds_nibbles(const Sm3Matrix& w) { return w.kind == SM3_W4 && !w.has_min && sm3_packed_size(&w) >= 0; }

SM3_API int32_t sm3_pack_nibbles(const Sm3Matrix* matrix, const uint8_t* codes, const float* scales, void* out,
                                 int32_t threads) {
    const Sm3Matrix& w = *matrix;
    if (!holds_nibbles(w) || threads < 1) return -1;
    const int64_t groups = w.cols / w.group;
    try {
        ThreadPool pool(threads);
        pool.run(panel_count(w), [&](int64_t panel) {
            uint8_t* to = (uint8_t*)out + panel * panel_bytes(w);
            memset(to, 0, size_t(panel_bytes(w)));
            for (int64_t lane = 0; lane < PANEL && panel * PANEL + lane < w.rows; lane++) {
                const int64_t row = panel * PANEL + lane;
                for (int64_t g = 0; g < groups; g++) ((uint16_t*)to)[g * PANEL + lane] = half(scales[row * groups + g]);
                const uint8_t* from = codes + row * w.cols / 2;
                uint8_t* place = to + panel_scale_bytes(w) + lane * 4;
                for (int64_t col = 0; col < w.cols; col += 8, place += 64)
                    for (int j = 0; j < 4; j++)
                        place[j] = uint8_t(code(from, col + j) | code(from, col + 4 + j) << 4);
            }
        });
    } catch (const std::exception&) {  // no thread to be had
        return -1;
    }
    return 0;
}

SM3_API int32_t sm3_unpack_nibbles(const Sm3Matrix* matrix, uint8_t* codes) {
    const Sm3Matrix& w = *matrix;
    if (!holds_nibbles(w)) return -1;
    for (int64_t row = 0; row < w.rows; row++) {
        const uint8_t* from = (const uint8_t*)w.data + row / PANEL * panel_bytes(w) + panel_scale_bytes(w) + row % PANEL * 4;
        uint8_t* to = codes + row * w.cols / 2;
        for (int64_t col = 0; col < w.cols; col += 8, from += 64, to += 4) {
            for (int j = 0; j < 2; j++) {
                to[j] = uint8_t((from[2 * j] & 15) << 4 | (from[2 * j + 1] & 15));
                to[2 + j] = uint8_t((from[2 * j] & 0xf0) | from[2 * j + 1] >> 4);
            }
        }
    }
    return 0;
}
