// The parts of penstock._core that have files of their own.
#pragma once

#include <nanobind/nanobind.h>

namespace penstock {

void bind_packed(nanobind::module_& m);
void bind_draft(nanobind::module_& m);

}  // namespace penstock
