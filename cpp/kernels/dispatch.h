// Which instruction set the kernels use: the best this CPU can run, unless one is forced.
#pragma once

#include <span>
#include <string_view>

#include "kernels/kernels.h"

namespace penstock {

// The tables this CPU can run, best first; the scalar one is always last.
std::span<const Kernels* const> available_kernels();

const Kernels& active_kernels();

// Makes the named table the active one; false if it is unknown or this CPU cannot run it.
bool set_active_kernels(std::string_view name);

}  // namespace penstock
