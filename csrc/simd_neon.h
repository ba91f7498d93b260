// Sixteen lanes as four NEON registers (Armv8.2-A with its dot product instructions).
#pragma once
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

struct f32 { float32x4_t a, b, c, d; };
struct i32 { int32x4_t a, b, c, d; };
struct u8 { uint8x16_t a, b, c, d; };

constexpr int W8_SHIFT = 128;  // dot works on signed codes
// Heads by vectors whose sums stay in registers while keys or values pass by.
constexpr int HEADS_AT_ONCE = 2, VECTORS_AT_ONCE = 2;

#define SM3_OF_ONE(to, name, from, op) static inline to name(from x) { return {op(x.a), op(x.b), op(x.c), op(x.d)}; }
#define SM3_OF_TWO(type, name, op) \
    static inline type name(type x, type y) { return {op(x.a, y.a), op(x.b, y.b), op(x.c, y.c), op(x.d, y.d)}; }
#define SM3_LOAD(type, name, of, op, step) \
    static inline type name(const of* p) { return {op(p), op(p + step), op(p + 2 * step), op(p + 3 * step)}; }
#define SM3_STORE(type, name, of, op) \
    static inline void name(of* p, type x) { op(p, x.a), op(p + 4, x.b), op(p + 8, x.c), op(p + 12, x.d); }
#define SM3_SET1(type, name, of, op) \
    static inline type name(of x) { return {op(x), op(x), op(x), op(x)}; }

// The second operand where either is NaN, as on every other instruction set.
static inline float32x4_t larger(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
static inline float32x4_t smaller(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
static inline float32x4_t exp2i(int32x4_t n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)); }
static inline float32x4_t load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
// The values in the low, and in the high half of each word: of bf16 in memory the even and the odd ones.
static inline float32x4_t low_bf16(uint32x4_t x) { return vreinterpretq_f32_u32(vshlq_n_u32(x, 16)); }
static inline float32x4_t high_bf16(uint32x4_t x) { return vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(0xffff0000))); }
static inline uint32x4_t load_pairs(const uint16_t* p) { return vreinterpretq_u32_u16(vld1q_u16(p)); }
static inline float32x4_t load_bf16(const uint16_t* p) { return low_bf16(vmovl_u16(vld1_u16(p))); }
static inline float32x4_t load_even(const uint16_t* p) { return low_bf16(load_pairs(p)); }
static inline float32x4_t load_odd(const uint16_t* p) { return high_bf16(load_pairs(p)); }

SM3_SET1(f32, f_set1, float, vdupq_n_f32)
SM3_LOAD(f32, f_load, float, vld1q_f32, 4)
SM3_LOAD(f32, f_load_f16, uint16_t, load_f16, 4)
SM3_LOAD(f32, f_load_bf16, uint16_t, load_bf16, 4)
SM3_LOAD(f32, f_even_bf16, uint16_t, load_even, 8)  // of 32 values, the first, the third, ...
SM3_LOAD(f32, f_odd_bf16, uint16_t, load_odd, 8)
SM3_STORE(f32, f_store, float, vst1q_f32)
SM3_OF_TWO(f32, f_add, vaddq_f32)
SM3_OF_TWO(f32, f_sub, vsubq_f32)
SM3_OF_TWO(f32, f_mul, vmulq_f32)
SM3_OF_TWO(f32, f_div, vdivq_f32)
SM3_OF_TWO(f32, f_max, larger)
SM3_OF_TWO(f32, f_min, smaller)
SM3_OF_ONE(f32, f_abs, f32, vabsq_f32)
SM3_OF_ONE(f32, f_from_i32, i32, vcvtq_f32_s32)
SM3_OF_ONE(i32, f_round, f32, vcvtnq_s32_f32)
SM3_OF_ONE(f32, f_exp2i, i32, exp2i)
static inline f32 f_zero() { return f_set1(0.0f); }
static inline f32 f_fma(f32 x, f32 y, f32 z) {
    return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
static inline float f_sum(f32 x) {  // in the order of every other instruction set
    const float32x4_t q = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    const float32x2_t pair = vadd_f32(vget_low_f32(q), vget_high_f32(q));
    return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
}
static inline float f_top(f32 x) { return vmaxvq_f32(larger(larger(x.a, x.c), larger(x.b, x.d))); }
static inline f32 f_load_i8(const int8_t* p) {
    const int8x16_t x = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
    return f_from_i32({vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
                       vmovl_s16(vget_high_s16(high))});
}
static inline void f_store_mixed(float* p, f32 even, f32 odd) {
    const float32x4x2_t quarters[] = {{{even.a, odd.a}}, {{even.b, odd.b}}, {{even.c, odd.c}}, {{even.d, odd.d}}};
    for (int i = 0; i < 4; i++) vst2q_f32(p + 8 * i, quarters[i]);
}

SM3_SET1(i32, i_set1, int32_t, vdupq_n_s32)
SM3_LOAD(i32, i_load, int32_t, vld1q_s32, 4)
SM3_STORE(i32, i_store, int32_t, vst1q_s32)
SM3_OF_TWO(i32, i_add, vaddq_s32)
SM3_OF_TWO(i32, i_sub, vsubq_s32)
SM3_OF_TWO(i32, i_mul, vmulq_s32)
static inline i32 i_zero() { return i_set1(0); }
static inline int32_t i_sum(i32 x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
static inline void i_store_i8(int8_t* p, i32 x) {
    const int16x8_t low = vcombine_s16(vqmovn_s32(x.a), vqmovn_s32(x.b)), high = vcombine_s16(vqmovn_s32(x.c), vqmovn_s32(x.d));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}

static inline uint8x16_t low_nibbles(uint8x16_t x) { return vandq_u8(x, vdupq_n_u8(15)); }
static inline uint8x16_t high_nibbles(uint8x16_t x) { return vshrq_n_u8(x, 4); }
SM3_LOAD(u8, u_load, uint8_t, vld1q_u8, 16)
SM3_OF_ONE(u8, u_low, u8, low_nibbles)
SM3_OF_ONE(u8, u_high, u8, high_nibbles)
// Puts the I-th two bits of `tops` above four-bit codes.
template <int I>
static inline uint8x16_t with_top(uint8x16_t low, uint8x16_t tops) {
    uint8x16_t at = tops;
    if constexpr (I < 2) at = vshlq_n_u8(tops, 4 - 2 * I);
    if constexpr (I > 2) at = vshrq_n_u8(tops, 2);
    return vorrq_u8(low, vandq_u8(at, vdupq_n_u8(0x30)));
}
template <int I>
SM3_OF_TWO(u8, u_with_top, with_top<I>)
static inline u8 u_table(const uint8_t* sixteen) {
    const uint8x16_t t = vld1q_u8(sixteen);
    return {t, t, t, t};
}
SM3_OF_TWO(u8, u_lookup, vqtbl1q_u8)

// acc[lane] += sum of four products of a lane's codes with the four activations at `x`; WIDE: codes of eight bits.
template <bool WIDE>
static inline i32 dot(i32 acc, u8 codes, const int8_t* x) {
    uint32_t word;
    memcpy(&word, x, 4);
    const int8x8_t four = vcreate_s8(word);
    const auto quarter = [four](int32x4_t sum, uint8x16_t w) {
        return vdotq_lane_s32(sum, vreinterpretq_s8_u8(WIDE ? veorq_u8(w, vdupq_n_u8(0x80)) : w), four, 0);
    };
    return {quarter(acc.a, codes.a), quarter(acc.b, codes.b), quarter(acc.c, codes.c), quarter(acc.d, codes.d)};
}

struct bf16x32 { uint32x4_t a, b, c, d; };
SM3_LOAD(bf16x32, b_load, uint16_t, load_pairs, 8)
SM3_OF_ONE(f32, b_even, bf16x32, low_bf16)
SM3_OF_ONE(f32, b_odd, bf16x32, high_bf16)
static inline f32 b_dot(f32 acc, bf16x32 x, bf16x32 y) { return f_fma(b_odd(x), b_odd(y), f_fma(b_even(x), b_even(y), acc)); }
#undef SM3_OF_ONE
#undef SM3_OF_TWO
#undef SM3_LOAD
#undef SM3_STORE
#undef SM3_SET1
