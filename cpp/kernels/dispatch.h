// Which instruction set the kernels use: the best this CPU can run, unless one is forced.
#pragma once

#include <string_view>
#include <vector>

#include "kernels/kernels.h"

namespace penstock {

// The tables this CPU can run, best first; the scalar one is always last.
const std::vector<const Kernels*>& available_kernels();

const Kernels& active_kernels();

// Makes the named table the active one; false if it is unknown or this CPU cannot run it.
bool set_active_kernels(std::string_view name);

}  // namespace penstock
