// Loops over the parts of a register tile must vanish, lest the compiler keeps the tile in memory.
#pragma once

#define PENSTOCK_UNROLL _Pragma("GCC unroll 16")

// The same happens where a loop of few turns is unrolled around such a tile.
#define PENSTOCK_KEEP_LOOP _Pragma("GCC unroll 1")
