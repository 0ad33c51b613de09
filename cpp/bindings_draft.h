// The part of penstock._core that drafts.
#pragma once

#include <nanobind/nanobind.h>

namespace penstock {

void bind_draft(nanobind::module_& m);

}  // namespace penstock
