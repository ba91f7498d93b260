// The tile operations of AMX that the kernels use, in two definitions: the machine's own, and with
// SM3_EMULATED their meaning in plain C++ after Intel's manual, for tests on machines without AMX.
// A tile is up to 16 rows of up to 64 bytes; tiles are named by the literals 0 to 7.
#pragma once
#include <stdint.h>

struct TileConfig {  // what LDTILECFG reads
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "the processor reads 64 bytes");

#if !defined(SM3_EMULATED)
// In assembly: gcc 12's own intrinsics do not tell the compiler that LDTILECFG reads 64 bytes and TILELOADD memory, so
// that stores before them may come after them or never.
#define tile_configure(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const TileConfig*)(config)) : "memory")
#define tile_release() __asm__ volatile("tilerelease" : : : "memory")
#define tile_zero(t) __asm__ volatile("tilezero %%tmm" #t : :)
#define tile_load(t, base, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(base), "r"(int64_t(stride)) : "memory")
#define tile_store(t, base, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(base), "r"(int64_t(stride)) : "memory")
#define tile_dot_s8(sum, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum : :)
#define tile_dot_bf16(sum, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum : :)

#else
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct EmulatedTiles {
    TileConfig config;
    bool ready = false;
    uint8_t data[8][16][64];
};
static thread_local EmulatedTiles emulated;

static inline void tile_demand(bool met, const char* what) {  // where the processor would raise #UD or #GP
    if (met) return;
    fprintf(stderr, "emulated AMX: %s\n", what);
    abort();
}
static inline void tile_known(int t) {
    tile_demand(emulated.ready, "no tile configuration is loaded");
    tile_demand(emulated.config.rows[t] > 0 && emulated.config.bytes[t] > 0, "a tile without rows or columns");
}
static inline void tile_configure(const TileConfig* config) {
    tile_demand(config->palette == 1 && config->start_row == 0, "a palette other than 1");
    for (uint8_t byte : config->reserved) tile_demand(byte == 0, "a reserved byte that is not 0");
    for (int t = 0; t < 16; t++) {
        tile_demand(config->rows[t] <= 16 && config->bytes[t] <= 64, "a tile beyond 16 rows of 64 bytes");
        tile_demand((config->rows[t] == 0) == (config->bytes[t] == 0), "a tile with rows or columns only");
        tile_demand(t < 8 || config->rows[t] == 0, "a tile beyond the eighth");
    }
    emulated.config = *config, emulated.ready = true;
    memset(emulated.data, 0, sizeof emulated.data);
}
static inline void tile_release() { emulated.ready = false; }
static inline void tile_zero(int t) {
    tile_known(t);
    memset(emulated.data[t], 0, sizeof emulated.data[t]);
}
static inline void tile_load(int t, const void* base, int64_t stride) {
    tile_zero(t);  // what lies beyond the configured rows and columns becomes 0
    for (int i = 0; i < emulated.config.rows[t]; i++)
        memcpy(emulated.data[t][i], static_cast<const uint8_t*>(base) + i * stride, emulated.config.bytes[t]);
}
static inline void tile_store(int t, void* base, int64_t stride) {
    tile_known(t);
    for (int i = 0; i < emulated.config.rows[t]; i++)
        memcpy(static_cast<uint8_t*>(base) + i * stride, emulated.data[t][i], emulated.config.bytes[t]);
}
static inline void tile_meet(int sum, int a, int b) {
    tile_known(sum), tile_known(a), tile_known(b);
    const TileConfig& c = emulated.config;
    tile_demand(sum != a && sum != b && a != b, "a tile used twice");
    tile_demand(c.bytes[a] % 4 == 0 && c.bytes[sum] % 4 == 0, "a row that is not whole words");
    tile_demand(c.rows[sum] == c.rows[a] && c.bytes[sum] == c.bytes[b] && c.bytes[a] / 4 == c.rows[b], "sizes that do not meet");
}
// TDPBSSD: sum[m][n] += the four products of a's m-th row and b's n-th column at each k.
static inline void tile_dot_s8(int sum, int a, int b) {
    tile_meet(sum, a, b);
    const TileConfig& c = emulated.config;
    for (int m = 0; m < c.rows[a]; m++)
        for (int k = 0; k < c.bytes[a] / 4; k++)
            for (int n = 0; n < c.bytes[b] / 4; n++) {
                int32_t total;
                memcpy(&total, &emulated.data[sum][m][n * 4], 4);
                for (int i = 0; i < 4; i++)
                    total += int8_t(emulated.data[a][m][k * 4 + i]) * int8_t(emulated.data[b][k][n * 4 + i]);
                memcpy(&emulated.data[sum][m][n * 4], &total, 4);
            }
}
static inline float tile_flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
static inline float tile_bf16(const uint8_t* at) {
    uint16_t half;
    memcpy(&half, at, 2);
    const uint32_t bits = uint32_t(half) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return tile_flush(x);
}
// TDPBF16PS: sum[m][n] += the products of a's m-th row and b's n-th column, in float32 to nearest even, denormals
// flushed on both sides. The order is that of the manual's operation section: even and odd columns in two chains of
// multiply-adds from 0, their sum, then that to what stood there; Intel's intrinsics guide writes one chain instead. The
// kernels rely on neither, only on this: sum[m][n] depends on what stood there, a's row and b's column, not on m or n,
// on other rows and columns, or on their number. First use checks that (dispatch.cpp).
static inline void tile_dot_bf16(int sum, int a, int b) {
    tile_meet(sum, a, b);
    const TileConfig& c = emulated.config;
    for (int m = 0; m < c.rows[a]; m++)
        for (int n = 0; n < c.bytes[b] / 4; n++) {
            float chains[2] = {0.0f, 0.0f}, total;
            for (int k = 0; k < c.bytes[a] / 4; k++)
                for (int i = 0; i < 2; i++)
                    chains[i] = tile_flush(fmaf(tile_bf16(&emulated.data[a][m][k * 4 + i * 2]),
                                                tile_bf16(&emulated.data[b][k][n * 4 + i * 2]), chains[i]));
            memcpy(&total, &emulated.data[sum][m][n * 4], 4);
            total = tile_flush(tile_flush(total) + tile_flush(chains[0] + chains[1]));
            memcpy(&emulated.data[sum][m][n * 4], &total, 4);
        }
}
#endif
