// What an instruction set provides: a table of kernels over raw pointers, one per translation unit.
// Every kernel treats a row (one token) alike whatever rows stand beside it: the same sums in the same
// order, so that a row's result never depends on the batch, the chunking or the number of threads.
#pragma once
#include "memory.h"
#include "smollm3.h"

constexpr int PANEL = 16;        // rows of a weight panel, lanes of a vector
constexpr int MOST_TOKENS = 16;  // of a tile
constexpr int KV_BLOCK = 64;     // positions of a KV block
constexpr int FOUR_BIT_PEAK = 120;  // of activations that meet four-bit codes: the sum of both fits into a byte (products_pairs.inc)
constexpr int SPLIT = 512;       // positions of one attention partial: fixed, so that sums never move

// How activations are quantized: columns that share a scale, and the code of the largest of them.
struct ActivationScheme {
    int32_t group = 64;  // or 32
    int32_t peak = 127;
    void suit(const Sm3Matrix& w) {
        if (w.cols % 64 || (w.kind != SM3_BF16 && w.group % 64)) group = 32;
        if (w.kind == SM3_W4 && !w.has_table) peak = FOUR_BIT_PEAK;
    }
};

// Quantized activations of `rows` tokens. The rows are cut into tiles of T tokens (see
// tile_count), and a tile's codes lie as its products want them, [cols / 4][T][4] or [groups][T][group] (tiled_from), at
// tile_begin * cols, with room for a group behind the last.
struct Activations {
    const int8_t* codes;
    const float* scales;    // [groups][T], tile by tile
    const int32_t* sums;    // [groups][T], sum of a group's codes
    const int32_t* pairs;   // [groups][T], see pairs_of_tokens; these three with room for a vector behind the last
    const uint16_t* bf16;   // for bf16 weights, tile by tile as the kernels' to_bf16 lays it; two more behind the last
    int64_t rows, cols;
    ActivationScheme scheme;
};

// Where a tile's tokens go, quantized: codes, scales, sums and pairs of Activations from the tile's first token on.
struct Tile {
    int8_t* codes;
    float* scales;
    int32_t *sums, *pairs;
};

// A KV cache's share of one layer: kv_heads x blocks.
struct KvLayer {
    uint8_t* data;          // [blocks] of block_bytes
    int64_t block_stride;   // bytes from one block to the next (all layers of a block lie together)
    int64_t head_bytes;     // bytes of one kv head: K then V (then scales)
    int32_t bits, head_dim;
};

// A stretch of one token's attention, for all query heads of some kv heads that lie side by side. Block by block: the
// wider the task, the longer the stretches of memory that it reads in order.
struct AttentionTask {
    const float* q;         // [kv_heads][group][head_dim], already scaled
    const int32_t* blocks;  // the sequence's block table
    int32_t kv_head, kv_heads, group;
    int32_t first, last;    // attend to positions [first, last)
    float* partial;         // of the split that holds `first`: [kv_heads][group][head_dim + 2]: sum of exp(s - max) * v,
                            // max, sum of exp
    int64_t step;           // floats from one split's partial to the next one's
};

// The rows of a step in as few tiles of at most `most` tokens as there can be, all about equal.
inline int64_t tile_count(int64_t rows, int64_t most) { return (rows + most - 1) / most; }
inline int64_t tile_begin(int64_t rows, int64_t tiles, int64_t i) { return rows * i / tiles; }

struct Kernels {
    int64_t max_tile;    // tokens that share one unpacked panel
    int64_t tiled_from;  // tokens of a step from which their codes lie as AMX takes them, [groups][T][group]
    // out[m * out_stride + n] (+)= sum_k W[n][k] x[m][k] + bias[n], for the panels [begin, end).
    void (*matmul)(const Sm3Matrix& w, const Activations& x, int64_t begin, int64_t end, float* out,
                   int64_t out_stride, bool accumulate);
    // `cols` columns of the rows of x, `stride` apart -> the groups of a tile of so many tokens, from column and group 0 of
    // `to` on.
    void (*quantize)(const float* x, int64_t stride, int64_t cols, const ActivationScheme& scheme, int64_t tile, bool tiled, const Tile& to);
    // `count` columns of such rows -> bf16, as columns `from` on of a tile that begins at `out`: [T][cols], on AMX
    // [cols / 2][T][2].
    void (*to_bf16)(const float* x, int64_t stride, int64_t from, int64_t count, int64_t cols, int64_t tile, uint16_t* out);
    // RMSNorm: what x's columns are multiplied by beside the weights; out = weight * (x * scale).
    float (*rms_scale)(const float* x, int64_t cols, float eps);
    void (*scale_columns)(const float* x, float scale, const float* weight, int64_t cols, float* out);
    // gate <- silu(gate) * up
    void (*silu_mul)(float* gate, const float* up, int64_t cols);
    void (*rope)(float* x, const float* cos, const float* sin, int32_t head_dim);
    void (*kv_append)(const KvLayer& kv, int32_t block, int32_t slot, int32_t kv_head, const float* k, const float* v);
    void (*attend)(const KvLayer& kv, const AttentionTask& task);
    // Merges `count` partials of one head in order: out [head_dim].
    void (*merge)(const float* partials, int64_t stride, int32_t count, int32_t head_dim, float* out);
};

// Weak: null where the compiler did not know the instructions and the unit was left out.
#define SM3_IF_BUILT __attribute__((weak))
extern const Kernels kernels_portable;
extern const Kernels kernels_avx2 SM3_IF_BUILT;
extern const Kernels kernels_avxvnni SM3_IF_BUILT;
extern const Kernels kernels_avx512 SM3_IF_BUILT;
extern const Kernels kernels_avx512bf16 SM3_IF_BUILT;
extern const Kernels kernels_zen4 SM3_IF_BUILT;
extern const Kernels kernels_amx SM3_IF_BUILT;
extern const Kernels kernels_neon SM3_IF_BUILT;

const Kernels* find_kernels(int32_t isa);  // dispatch.cpp; null where this machine or this build lacks it

// Bits of a code, and bytes of the codes of some columns of a panel.
inline int64_t code_bits(int32_t kind) { return kind == SM3_W4 ? 4 : kind == SM3_W6 ? 6 : 8; }
inline int64_t code_bytes(int32_t kind, int64_t cols) { return cols * PANEL * code_bits(kind) / 8; }
inline int64_t panel_scale_bytes(const Sm3Matrix& w) {
    return round_up(w.cols / w.group * PANEL * 2 * (1 + w.has_min), 64);
}
inline int64_t panel_bytes(const Sm3Matrix& w) {
    return panel_scale_bytes(w) + code_bytes(w.kind, w.cols);
}
inline int64_t panel_count(const Sm3Matrix& w) { return (w.rows + PANEL - 1) / PANEL; }
// Bytes of one KV head in one block: K transposed [head_dim][64], V [64][head_dim], with int8 two rows of scales.
inline int64_t kv_head_bytes(int32_t bits, int32_t head_dim) {
    return int64_t(2) * KV_BLOCK * head_dim * bits / 8 + (bits == 8 ? 2 * KV_BLOCK * 4 : 0);
}
