#pragma once

#include <string_view>

#include "core/error.h"
#include "cuda/config/tile_choice.h"

// MOLAE_CUDA_TILES: which tiles layers take. Read when a layer is prepared.
namespace molae::cuda {

inline constexpr const char* kTilesVariable = "MOLAE_CUDA_TILES";

inline const char* tile_name(GemmTile tile) {
  switch (tile) {
    case GemmTile::Simt:
      return "simt";
    case GemmTile::Stream:
      return "stream";
    case GemmTile::Small:
      return "small";
    case GemmTile::Medium:
      return "medium";
    case GemmTile::Large:
      return "large";
    case GemmTile::Hopper8:
      return "hopper8";
    case GemmTile::Hopper16:
      return "hopper16";
    case GemmTile::Hopper32:
      return "hopper32";
    case GemmTile::Hopper64:
      return "hopper64";
    case GemmTile::Hopper128:
      return "hopper128";
  }
  return "";
}

// A family by its name, or one tile. Empty: the default, where the GPU has its tiles. Throws InvalidArgument for
// another word, and for Hopper's tiles on another GPU: who asks for them wants no others.
inline TileRequest parse_tile_request(std::string_view text, bool has_hopper, std::string_view gpu) {
  if (text.empty()) return {has_hopper ? kDefaultHalfTiles : TileFamily::Mma, {}};
  TileRequest request{TileFamily::Mma, {}};
  bool known = text == "mma";
  if (text == "hopper") {
    request.family = TileFamily::Hopper;
    known = true;
  }
  for (const GemmTile tile : kGemmTiles) {
    if (tile == GemmTile::Simt || text != tile_name(tile)) continue;
    request = {tile_family(tile), tile};
    known = true;
  }
  if (!known) {
    fail(ErrorCode::InvalidArgument,
         "Expected mma, hopper or the name of a tile (stream, small, medium, large, hopper8 ", "to hopper128) for ",
         kTilesVariable, " but received \"", text, "\"");
  }
  if (wants_hopper(request) && !has_hopper) {
    fail(ErrorCode::InvalidArgument, kTilesVariable, "=", text, " needs a GPU of compute capability 9.0, but this is ",
         gpu);
  }
  return request;
}

}  // namespace molae::cuda
