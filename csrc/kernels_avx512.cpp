#include "simd_avx512.h"
#define SM3_KERNELS kernels_avx512
constexpr int MAX_TILE = 16;  // tokens that share one unpacked panel
#include "kernels.inc"
