// Loops over the parts of a register tile must vanish, lest the compiler keeps the tile in memory.
#pragma once

#define PENSTOCK_UNROLL _Pragma("GCC unroll 16")
