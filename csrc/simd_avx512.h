// Sixteen lanes on AVX-512 (F, BW, DQ, VL, VNNI; bf16 products where the unit is compiled with them).
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef __m512 f32;
typedef __m512i i32;
typedef __m512i u8;

// What dot_w8 subtracts from each code by itself; the rest of the zero point comes off by the sums.
constexpr int W8_SHIFT = 0;
// Heads by vectors whose sums stay in registers while keys or values pass by.
constexpr int HEADS_AT_ONCE = 4, VECTORS_AT_ONCE = 4;

static inline f32 f_zero() { return _mm512_setzero_ps(); }
static inline f32 f_set1(float x) { return _mm512_set1_ps(x); }
static inline f32 f_load(const float* p) { return _mm512_loadu_ps(p); }
static inline void f_store(float* p, f32 x) { _mm512_storeu_ps(p, x); }
static inline f32 f_add(f32 a, f32 b) { return _mm512_add_ps(a, b); }
static inline f32 f_sub(f32 a, f32 b) { return _mm512_sub_ps(a, b); }
static inline f32 f_mul(f32 a, f32 b) { return _mm512_mul_ps(a, b); }
static inline f32 f_div(f32 a, f32 b) { return _mm512_div_ps(a, b); }
static inline f32 f_fma(f32 a, f32 b, f32 c) { return _mm512_fmadd_ps(a, b, c); }
static inline f32 f_max(f32 a, f32 b) { return _mm512_max_ps(a, b); }  // b where either is NaN
static inline f32 f_min(f32 a, f32 b) { return _mm512_min_ps(a, b); }
static inline f32 f_abs(f32 a) { return _mm512_abs_ps(a); }
static inline float f_sum(f32 a) { return _mm512_reduce_add_ps(a); }
static inline float f_top(f32 a) { return _mm512_reduce_max_ps(a); }
static inline f32 f_from_i32(i32 a) { return _mm512_cvtepi32_ps(a); }
static inline f32 f_of_bits(i32 a) { return _mm512_castsi512_ps(a); }
static inline i32 f_round(f32 a) { return _mm512_cvtps_epi32(a); }
static inline f32 f_exp2i(i32 n) {  // 2^n for n in [-126, 127]
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
static inline f32 f_load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
static inline f32 f_load_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline f32 f_even_bf16(const uint16_t* p) {  // of 32 values, the first, the third, ...
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
static inline f32 f_odd_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(int32_t(0xffff0000))));
}
static inline void f_store_mixed(float* p, f32 even, f32 odd) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    f_store(p, _mm512_permutex2var_ps(even, low, odd));
    f_store(p + 16, _mm512_permutex2var_ps(even, _mm512_add_epi32(low, _mm512_set1_epi32(8)), odd));
}
static inline f32 f_load_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

// Rows to columns: r[i] lane j <-> r[j] lane i.
static inline void f_transpose(f32* r) {
    f32 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    const auto pairs = [](f32 a, f32 b, bool high) {
        const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
        return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
    };
    for (int i = 0; i < 16; i += 4)  // r[4 b + c]: of rows 4 b to 4 b + 3, columns c, c + 4, c + 8, c + 12
        for (int c = 0; c < 4; c++) r[i + c] = pairs(t[i + c / 2], t[i + c / 2 + 2], c % 2);
    for (int c = 0; c < 4; c++) {
        const f32 even = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88), odd = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
        const f32 even2 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88), odd2 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
        r[c] = _mm512_shuffle_f32x4(even, even2, 0x88), r[8 + c] = _mm512_shuffle_f32x4(even, even2, 0xdd);
        r[4 + c] = _mm512_shuffle_f32x4(odd, odd2, 0x88), r[12 + c] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
    }
}

static inline i32 i_zero() { return _mm512_setzero_si512(); }
static inline i32 i_set1(int32_t x) { return _mm512_set1_epi32(x); }
static inline i32 i_load(const int32_t* p) { return _mm512_loadu_si512(p); }
static inline void i_store(int32_t* p, i32 x) { _mm512_storeu_si512(p, x); }
// The first `lanes` lanes alone.
static inline i32 i_load_first(int lanes, const void* p) { return _mm512_maskz_loadu_epi32(__mmask16((1 << lanes) - 1), p); }
static inline void i_store_first(int lanes, int32_t* p, i32 x) { _mm512_mask_storeu_epi32(p, __mmask16((1 << lanes) - 1), x); }
static inline i32 i_mul(i32 a, i32 b) { return _mm512_mullo_epi32(a, b); }
static inline i32 i_add(i32 a, i32 b) { return _mm512_add_epi32(a, b); }
static inline i32 i_sub(i32 a, i32 b) { return _mm512_sub_epi32(a, b); }
static inline int32_t i_sum(i32 a) { return _mm512_reduce_add_epi32(a); }
static inline void i_store_i8(int8_t* p, i32 a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(a)); }

static inline u8 u_load(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline void u_store(void* p, u8 x) { _mm512_storeu_si512(p, x); }
static inline u8 u_set1(uint8_t x) { return _mm512_set1_epi8(char(x)); }
static inline u8 u_add(u8 a, u8 b) { return _mm512_add_epi8(a, b); }
static inline u8 u_sub(u8 a, u8 b) { return _mm512_sub_epi8(a, b); }
static inline u8 u_low(u8 x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
static inline u8 u_high(u8 x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); }
// Puts the I-th two bits of `tops` above four-bit codes.
template <int I>
static inline u8 u_with_top(u8 low, u8 tops) {
    u8 at = tops;
    if constexpr (I < 2) at = _mm512_slli_epi16(tops, 4 - 2 * I);
    if constexpr (I > 2) at = _mm512_srli_epi16(tops, 2);
    return _mm512_ternarylogic_epi32(at, _mm512_set1_epi8(0x30), low, 0xea);  // at & 0x30 | low
}
static inline u8 u_table(const uint8_t* sixteen) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)sixteen));
}
static inline u8 u_lookup(u8 table, u8 codes) { return _mm512_shuffle_epi8(table, codes); }

// acc[lane] += sum of four products of a lane's codes with the four activations at `x`; WIDE: codes of eight bits.
// In assembly, because compilers that see an intrinsic here keep a second copy of every sum and run out of registers.
template <bool WIDE>
static inline i32 dot(i32 acc, u8 codes, const int8_t* x) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(codes), "m"(*(const int32_t*)x));
    return acc;
}

// acc[lane] += sum of four products of a lane's bytes, the first without sign and the second with.
static inline i32 dot_vectors(i32 acc, u8 a, u8 b) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
// The same of a + the four bytes at `x` and b + those at `y`.
static inline i32 dot_pair(i32 acc, u8 a, u8 b, const int8_t* x, const int8_t* y) {
    u8 four_x, four_y;  // loads of their own: from intrinsics compilers make shuffles
    __asm__("vpbroadcastd %1, %0" : "=v"(four_x) : "m"(*(const int32_t*)x));
    __asm__("vpbroadcastd %1, %0" : "=v"(four_y) : "m"(*(const int32_t*)y));
    return dot_vectors(acc, u_add(four_x, a), u_add(four_y, b));
}

#ifdef __AVX512BF16__
typedef __m512bh bf16x32;
static inline bf16x32 b_load(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
static inline f32 b_dot(f32 acc, bf16x32 a, bf16x32 b) { return _mm512_dpbf16_ps(acc, a, b); }
#else
typedef __m512i bf16x32;
static inline bf16x32 b_load(const uint16_t* p) { return _mm512_loadu_si512(p); }
static inline f32 b_even(bf16x32 a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
static inline f32 b_odd(bf16x32 a) {
    return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32(int32_t(0xffff0000))));
}
static inline f32 b_dot(f32 acc, bf16x32 a, bf16x32 b) {
    return f_fma(b_odd(a), b_odd(b), f_fma(b_even(a), b_even(b), acc));
}
#endif
