#include "simd_avx512.h"
#include "simd_amx.h"
#define SM3_KERNELS kernels_amx
#define SM3_AMX_UNIT
constexpr int MAX_TILE = 16;  // tokens that share one unpacked panel
constexpr int AMX_LEAST = 8;  // tokens from which a tile of them goes through AMX tiles
#include "kernels.inc"
