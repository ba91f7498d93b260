#define SM3_QUANTIZE_PANEL quantize_panel_portable
#include "quantize.inc"
