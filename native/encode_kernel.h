// The table of the quantisation kernels, compiled once per instruction set.
#pragma once

#include "encode_errors.h"
#include "encode_maps.h"
#include "encode_panels.h"

namespace {

constexpr EncodeKernels kEncodeKernels = {
    {encode4<kFloat32>, encode4<kBFloat16>, encode4<kFloat16>},
    {encode8<kFloat32>, encode8<kBFloat16>, encode8<kFloat16>},
    {encode_map4<kFloat32>, encode_map4<kBFloat16>, encode_map4<kFloat16>},
    fit,
    {panel_error<kFloat32>, panel_error<kBFloat16>, panel_error<kFloat16>},
    {map_error<kFloat32>, map_error<kBFloat16>, map_error<kFloat16>},
};

}  // namespace
