#include "simd_avx512.h"
#include "simd_amx.h"
#define SM3_KERNELS kernels_amx
#define SM3_AMX_UNIT
constexpr int MAX_TILE = 16;  // tokens that share one unpacked panel
constexpr int64_t TILED_FROM = 32;  // tokens of a step from which quantized weights meet them in AMX tiles
#include "kernels.inc"
