#include "simd_neon.h"
#define SM3_KERNELS kernels_neon
constexpr int MAX_TILE = 4;  // tokens that share one unpacked panel
#include "kernels.inc"
