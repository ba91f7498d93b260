// Half floats in plain integers, for the places that see few of them: rounding to nearest even, as the
// machine's own instructions do it.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (magnitude >= 0x47800000) return uint16_t(sign | 0x7c00);  // 65520 and more round to infinity
    float scaled, value;
    memcpy(&value, &magnitude, 4);
    if (magnitude < 0x38800000) {  // subnormal: count in units of 2^-24
        scaled = nearbyintf(value * 16777216.0f);
        return uint16_t(sign | uint32_t(scaled));
    }
    const uint32_t rounded = magnitude + 0x0fff + (magnitude >> 13 & 1);
    return uint16_t(sign | (rounded - 0x38000000) >> 13);
}

static inline float from_half(uint16_t h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                            : exponent == 0 ? ldexpf(float(fraction), -24)
                                            : ldexpf(float(fraction + 1024), exponent - 25);
    return h & 0x8000 ? -magnitude : magnitude;
}
