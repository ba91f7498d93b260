// Sixteen lanes as two AVX2 registers (AVX2, FMA, F16C). With SM3_AVXVNNI_UNIT dot products are one instruction, or with
// SM3_EMULATED its meaning in AVX2's.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

struct f32 { __m256 a, b; };
struct i32 { __m256i a, b; };
typedef i32 u8;

#if defined(SM3_AVXVNNI_UNIT)
constexpr int W8_SHIFT = 0;
#else
constexpr int W8_SHIFT = 128;  // dot works on signed codes
#endif
// Heads by vectors whose sums stay in registers while keys or values pass by.
constexpr int HEADS_AT_ONCE = 2, VECTORS_AT_ONCE = 2;

#define SM3_BOTH(name, op) static inline f32 name(f32 x, f32 y) { return {op(x.a, y.a), op(x.b, y.b)}; }
SM3_BOTH(f_add, _mm256_add_ps)
SM3_BOTH(f_sub, _mm256_sub_ps)
SM3_BOTH(f_mul, _mm256_mul_ps)
SM3_BOTH(f_div, _mm256_div_ps)
SM3_BOTH(f_max, _mm256_max_ps)  // y where either is NaN
SM3_BOTH(f_min, _mm256_min_ps)
#undef SM3_BOTH

static inline f32 f_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline f32 f_set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline f32 f_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void f_store(float* p, f32 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
static inline f32 f_fma(f32 x, f32 y, f32 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline f32 f_abs(f32 x) {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
static inline float f_sum(f32 x) {
    __m256 s = _mm256_add_ps(x.a, x.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
static inline float f_top(f32 x) {
    __m256 s = _mm256_max_ps(x.a, x.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
static inline f32 f_from_i32(i32 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline i32 f_round(f32 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline f32 f_exp2i(i32 n) {
    const __m256i bias = _mm256_set1_epi32(127);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.a, bias), 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.b, bias), 23))};
}
static inline f32 f_load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline __m256 f_widen_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
static inline f32 f_load_bf16(const uint16_t* p) { return {f_widen_bf16(p), f_widen_bf16(p + 8)}; }
static inline f32 f_even_bf16(const uint16_t* p) {  // of 32 values, the first, the third, ...
    const __m256i* x = (const __m256i*)p;
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(x), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(x + 1), 16))};
}
static inline f32 f_odd_bf16(const uint16_t* p) {
    const __m256i mask = _mm256_set1_epi32(int32_t(0xffff0000)), *x = (const __m256i*)p;
    return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(x), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(x + 1), mask))};
}
static inline void f_store_eight(float* p, __m256 even, __m256 odd) {
    const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    _mm256_storeu_ps(p, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(p + 8, _mm256_permute2f128_ps(low, high, 0x31));
}
static inline void f_store_mixed(float* p, f32 even, f32 odd) {
    f_store_eight(p, even.a, odd.a);
    f_store_eight(p + 16, even.b, odd.b);
}
static inline f32 f_load_i8(const int8_t* p) {
    const __m128i x = _mm_loadu_si128((const __m128i*)p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}

static inline i32 i_set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline i32 i_zero() { return i_set1(0); }
static inline i32 i_load(const int32_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
static inline void i_store(int32_t* p, i32 x) {
    _mm256_storeu_si256((__m256i*)p, x.a);
    _mm256_storeu_si256((__m256i*)(p + 8), x.b);
}
static inline i32 i_mul(i32 x, i32 y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
static inline i32 i_add(i32 x, i32 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline i32 i_sub(i32 x, i32 y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
static inline int32_t i_sum(i32 x) {
    const __m256i s = _mm256_add_epi32(x.a, x.b);
    __m128i q = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}
static inline void i_store_i8(int8_t* p, i32 x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i*)p, bytes);
}

static inline u8 u_load(const uint8_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
static inline u8 u_low(u8 x) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
static inline u8 u_high(u8 x) { return u_low({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
// Puts the I-th two bits of `tops` above four-bit codes.
template <int I>
static inline __m256i u_half_with_top(__m256i low, __m256i tops) {
    __m256i at = tops;
    if constexpr (I < 2) at = _mm256_slli_epi16(tops, 4 - 2 * I);
    if constexpr (I > 2) at = _mm256_srli_epi16(tops, 2);
    return _mm256_or_si256(low, _mm256_and_si256(at, _mm256_set1_epi8(0x30)));
}
template <int I>
static inline u8 u_with_top(u8 low, u8 tops) {
    return {u_half_with_top<I>(low.a, tops.a), u_half_with_top<I>(low.b, tops.b)};
}
static inline u8 u_table(const uint8_t* sixteen) {
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)sixteen));
    return {t, t};
}
static inline u8 u_lookup(u8 table, u8 codes) {
    return {_mm256_shuffle_epi8(table.a, codes.a), _mm256_shuffle_epi8(table.b, codes.b)};
}

#if defined(SM3_AVXVNNI_UNIT)
template <bool WIDE>
static inline __m256i dot_half(__m256i acc, __m256i codes, __m256i a) {
#if defined(SM3_EMULATED)
    const __m256i even = _mm256_and_si256(codes, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(codes, 8);
    const __m256i a_even = _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8), a_odd = _mm256_srai_epi16(a, 8);
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(even, a_even));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(odd, a_odd));
#else
    return _mm256_dpbusd_avx_epi32(acc, codes, a);
#endif
}
#else
// Codes of up to six bits: pairs of products of at most 63 * 127 cannot saturate in sixteen bits.
static inline __m256i dot_half_narrow(__m256i acc, __m256i codes, __m256i a) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, a), _mm256_set1_epi16(1)));
}
// Eight-bit codes: |w| times the activation with w's sign, so that pairs stay below 2^15.
static inline __m256i dot_half_w8(__m256i acc, __m256i codes, __m256i a) {
    const __m256i w = _mm256_xor_si256(codes, _mm256_set1_epi8(char(0x80)));
    return dot_half_narrow(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
}
template <bool WIDE>
static inline __m256i dot_half(__m256i acc, __m256i codes, __m256i a) {
    return WIDE ? dot_half_w8(acc, codes, a) : dot_half_narrow(acc, codes, a);
}
#endif

// acc[lane] += sum of four products of a lane's codes with the four activations at `x`; WIDE: codes of eight bits.
template <bool WIDE>
static inline i32 dot(i32 acc, u8 codes, const int8_t* x) {
    int32_t word;
    memcpy(&word, x, 4);
    const __m256i four = _mm256_set1_epi32(word);
    return {dot_half<WIDE>(acc.a, codes.a, four), dot_half<WIDE>(acc.b, codes.b, four)};
}

typedef i32 bf16x32;
static inline bf16x32 b_load(const uint16_t* p) { return u_load((const uint8_t*)p); }
static inline f32 b_even(bf16x32 x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
}
static inline f32 b_odd(bf16x32 x) {
    const __m256i mask = _mm256_set1_epi32(int32_t(0xffff0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(x.a, mask)), _mm256_castsi256_ps(_mm256_and_si256(x.b, mask))};
}
static inline f32 b_dot(f32 acc, bf16x32 x, bf16x32 y) {
    return f_fma(b_odd(x), b_odd(y), f_fma(b_even(x), b_even(y), acc));
}
