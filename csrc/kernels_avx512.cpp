#include "simd_avx512.h"
#define SM3_KERNELS kernels_avx512
constexpr int MAX_TILE = 16;  // tokens that share one unpacked panel
constexpr int BF16_TILE = 4;  // tokens whose products with bf16 weights are summed in registers
#include "kernels.inc"
