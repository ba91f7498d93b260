#define SM3_QUANTIZE_PANEL quantize_panel_avx512
#include "quantize.inc"
