#include "simd_avx512.h"
#define SM3_KERNELS kernels_zen4
#define SM3_PAIRS_UNIT
constexpr int MAX_TILE = 12;  // tokens that share one unpacked panel; more leave no register for the sums in float
constexpr int BF16_TILE = 6;  // tokens whose products with bf16 weights are summed in registers
#include "kernels.inc"
