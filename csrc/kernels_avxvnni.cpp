#define SM3_AVXVNNI_UNIT
#include "simd_avx2.h"
#define SM3_KERNELS kernels_avxvnni
constexpr int MAX_TILE = 4;  // tokens that share one unpacked panel
constexpr int BF16_TILE = 2;  // tokens whose products with bf16 weights are summed in registers
#include "kernels.inc"
