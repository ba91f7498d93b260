#define SM3_QUANTIZE_PANEL quantize_panel_avx2
#include "quantize.inc"
