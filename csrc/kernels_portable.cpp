#include "simd_portable.h"
#define SM3_KERNELS kernels_portable
constexpr int MAX_TILE = 4;  // tokens that share one unpacked panel
#include "kernels.inc"
