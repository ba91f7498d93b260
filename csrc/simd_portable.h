// Sixteen lanes in plain C++, for any processor; compilers turn the loops into what it has.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

struct f32 { float v[16]; };
struct i32 { int32_t v[16]; };
struct u8 { uint8_t v[64]; };

constexpr int W8_SHIFT = 0;
// Heads by vectors whose sums stay in registers while keys or values pass by.
constexpr int HEADS_AT_ONCE = 4, VECTORS_AT_ONCE = 2;

#define SM3_LANES(type, expression) \
    type r; \
    for (int i = 0; i < 16; i++) r.v[i] = (expression); \
    return r;

static inline f32 f_set1(float x) { SM3_LANES(f32, x) }
static inline f32 f_zero() { return f_set1(0.0f); }
static inline f32 f_load(const float* p) { SM3_LANES(f32, p[i]) }
static inline void f_store(float* p, const f32& x) { memcpy(p, x.v, sizeof x.v); }
static inline f32 f_add(const f32& a, const f32& b) { SM3_LANES(f32, a.v[i] + b.v[i]) }
static inline f32 f_sub(const f32& a, const f32& b) { SM3_LANES(f32, a.v[i] - b.v[i]) }
static inline f32 f_mul(const f32& a, const f32& b) { SM3_LANES(f32, a.v[i] * b.v[i]) }
static inline f32 f_div(const f32& a, const f32& b) { SM3_LANES(f32, a.v[i] / b.v[i]) }
static inline f32 f_fma(const f32& a, const f32& b, const f32& c) { SM3_LANES(f32, a.v[i] * b.v[i] + c.v[i]) }
static inline f32 f_max(const f32& a, const f32& b) { SM3_LANES(f32, a.v[i] > b.v[i] ? a.v[i] : b.v[i]) }
static inline f32 f_min(const f32& a, const f32& b) { SM3_LANES(f32, a.v[i] < b.v[i] ? a.v[i] : b.v[i]) }
static inline f32 f_abs(const f32& a) { SM3_LANES(f32, fabsf(a.v[i])) }
static inline float f_sum(const f32& a) {
    float half[8], quarter[4];
    for (int i = 0; i < 8; i++) half[i] = a.v[i] + a.v[i + 8];
    for (int i = 0; i < 4; i++) quarter[i] = half[i] + half[i + 4];
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}
static inline float f_top(const f32& a) {
    float top = a.v[0];
    for (int i = 1; i < 16; i++) top = a.v[i] > top ? a.v[i] : top;
    return top;
}
static inline f32 f_from_i32(const i32& a) { SM3_LANES(f32, float(a.v[i])) }
static inline i32 f_round(const f32& a) {
    // NaN and what no integer holds become 0: a cast of theirs is undefined, and the caller marks them.
    SM3_LANES(i32, fabsf(a.v[i]) < 1e9f ? int32_t(nearbyintf(a.v[i])) : 0)
}
static inline float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline f32 f_exp2i(const i32& n) { SM3_LANES(f32, bits_to_float(uint32_t(n.v[i] + 127) << 23)) }
static inline float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000 | fraction << 13);
    if (exponent) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
    return bits_to_float(sign | 0x33800000) * float(fraction);  // 2^-24 times the fraction
}
static inline f32 f_load_f16(const uint16_t* p) { SM3_LANES(f32, half_to_float(p[i])) }
static inline f32 f_load_bf16(const uint16_t* p) { SM3_LANES(f32, bits_to_float(uint32_t(p[i]) << 16)) }
static inline f32 f_even_bf16(const uint16_t* p) { SM3_LANES(f32, bits_to_float(uint32_t(p[2 * i]) << 16)) }
static inline f32 f_odd_bf16(const uint16_t* p) { SM3_LANES(f32, bits_to_float(uint32_t(p[2 * i + 1]) << 16)) }
static inline void f_store_mixed(float* p, const f32& even, const f32& odd) {
    for (int i = 0; i < 16; i++) p[2 * i] = even.v[i], p[2 * i + 1] = odd.v[i];
}
static inline f32 f_load_i8(const int8_t* p) { SM3_LANES(f32, float(p[i])) }

static inline i32 i_set1(int32_t x) { SM3_LANES(i32, x) }
static inline i32 i_zero() { return i_set1(0); }
static inline i32 i_load(const int32_t* p) { SM3_LANES(i32, p[i]) }
static inline void i_store(int32_t* p, const i32& x) { memcpy(p, x.v, sizeof x.v); }
// Wraps: lanes without a token hold anything.
static inline i32 i_mul(const i32& a, const i32& b) { SM3_LANES(i32, int32_t(uint32_t(a.v[i]) * uint32_t(b.v[i]))) }
static inline i32 i_add(const i32& a, const i32& b) { SM3_LANES(i32, a.v[i] + b.v[i]) }
static inline i32 i_sub(const i32& a, const i32& b) { SM3_LANES(i32, a.v[i] - b.v[i]) }
static inline int32_t i_sum(const i32& a) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += a.v[i];
    return sum;
}
static inline void i_store_i8(int8_t* p, const i32& a) {
    for (int i = 0; i < 16; i++) p[i] = int8_t(a.v[i] > 127 ? 127 : a.v[i] < -128 ? -128 : a.v[i]);
}

#define SM3_BYTES(expression) \
    u8 r; \
    for (int i = 0; i < 64; i++) r.v[i] = uint8_t(expression); \
    return r;
static inline u8 u_load(const uint8_t* p) { SM3_BYTES(p[i]) }
static inline u8 u_low(const u8& x) { SM3_BYTES(x.v[i] & 15) }
static inline u8 u_high(const u8& x) { SM3_BYTES(x.v[i] >> 4) }
// Puts the I-th two bits of `tops` above four-bit codes.
template <int I>
static inline u8 u_with_top(const u8& low, const u8& tops) { SM3_BYTES(low.v[i] | (tops.v[i] >> 2 * I & 3) << 4) }
static inline u8 u_table(const uint8_t* sixteen) { SM3_BYTES(sixteen[i & 15]) }
static inline u8 u_lookup(const u8& table, const u8& codes) { SM3_BYTES(table.v[codes.v[i] & 15]) }

// acc[lane] += sum of four products of a lane's codes with the four activations at `x`.
template <bool WIDE>
static inline i32 dot(const i32& acc, const u8& codes, const int8_t* x) {
    SM3_LANES(i32, acc.v[i] + codes.v[4 * i] * x[0] + codes.v[4 * i + 1] * x[1] + codes.v[4 * i + 2] * x[2] +
                       codes.v[4 * i + 3] * x[3])
}

struct bf16x32 { uint16_t v[32]; };
static inline bf16x32 b_load(const uint16_t* p) {
    bf16x32 r;
    memcpy(r.v, p, sizeof r.v);
    return r;
}
static inline float b_float(uint16_t x) { return bits_to_float(uint32_t(x) << 16); }
static inline f32 b_dot(const f32& acc, const bf16x32& x, const bf16x32& y) {
    SM3_LANES(f32, acc.v[i] + b_float(x.v[2 * i]) * b_float(y.v[2 * i]) + b_float(x.v[2 * i + 1]) * b_float(y.v[2 * i + 1]))
}
#undef SM3_LANES
#undef SM3_BYTES
