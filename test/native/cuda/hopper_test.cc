#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>
#include <utility>

#include "core/error.h"
#include "cuda/config/tile_request.h"
#include "cuda/logic/hopper/tile_shape.h"
#include "native/cuda/hopper_on_host.h"
#include "native/cuda/random_product.h"

// Hopper's tiles on a model of the hardware: the kernel's own source, against plain f64 loops, and its parts against
// what the PTX ISA and the driver's documentation say.
namespace molae::test {
namespace {

using namespace cuda;
using namespace cuda::hopper;

constexpr GemmTile kHopperTiles[] = {GemmTile::Hopper8, GemmTile::Hopper16, GemmTile::Hopper32, GemmTile::Hopper64,
                                     GemmTile::Hopper128};

// --- Parts
// -------------------------------------------------------------------------------------------------------------

MOLAE_TEST("hopper: the producer's swizzle is the copy engine's and the tensor cores'", Logic) {
  std::vector<bool> taken(64 * kRowBytes / kVectorBytes);
  for (int row = 0; row < 64; ++row) {
    for (int vector = 0; vector < kRowVectors; ++vector) {
      const int plain = row * 128 + vector * 16;
      const int at = swizzled(row, vector);
      expect_equal(at, plain ^ (plain >> 7 & 7) << 4, "row ", row, ", vector ", vector);
      expect(!taken[at / 16], "two vectors in one place");
      taken[at / 16] = true;
    }
  }
}

MOLAE_TEST("hopper: a matrix descriptor has its fields where the PTX ISA has them", Logic) {
  const uint32_t address = 1024 * static_cast<uint32_t>(context.integer(1, 220));
  const uint64_t descriptor = matrix_descriptor(address);
  expect_equal((descriptor & 0x3fff) << 4, uint64_t{address}, "address");
  expect_equal(descriptor >> 14 & 3, uint64_t{0}, "bits 14 and 15");
  expect_equal((descriptor >> 32 & 0x3fff) << 4, uint64_t{8 * 128}, "stride from 8 rows to the next");
  expect_equal(descriptor >> 46 & 0xffff, uint64_t{0}, "bits 46 to 61, with the base offset");
  expect_equal(descriptor >> 62, uint64_t{1}, "128-byte swizzle");
  for (int step = 0; step < kInstructions; ++step) {
    expect_equal((advanced(descriptor, step) & 0x3fff) << 4, uint64_t{address} + 32 * step, "step ", step);
    expect_equal(advanced(descriptor, step) >> 14, descriptor >> 14, "the other fields at step ", step);
  }
}

MOLAE_TEST("hopper: the fragments of a warpgroup are every element once", Logic) {
  for (const int columns : {8, 16, 32, 64, 128, 256}) {
    std::vector<int> count(64 * columns);
    for (int thread = 0; thread < 128; ++thread) {
      for (int sum = 0; sum < fragment_sums(columns); ++sum) {
        const int row = fragment_row(thread, sum), column = fragment_column(thread, sum);
        expect(row < 64 && column < columns, "an element outside");
        // The formula of the PTX ISA's figure for matrix D.
        const int group = thread % 32 >> 2, in_group = thread % 4;
        expect_equal(row, (thread / 32) * 16 + group + (sum & 2 ? 8 : 0), "row");
        expect_equal(column, sum / 4 * 8 + in_group * 2 + (sum & 1), "column");
        ++count[row * columns + column];
      }
    }
    expect(std::all_of(count.begin(), count.end(), [](int n) { return n == 1; }), columns, " columns");
  }
}

MOLAE_TEST("hopper: the persistent blocks take every tile once", Logic) {
  for (int round = 0; round < 200; ++round) {
    const auto problems = static_cast<int32_t>(context.integer(1, 20));
    std::vector<RowTile> tiles;
    std::vector<int32_t> columns;
    for (int32_t p = 0; p < problems; ++p) {
      columns.push_back(static_cast<int32_t>(context.integer(0, 700)));
      for (int64_t i = context.integer(0, 3); i > 0; --i) tiles.push_back({p, 0, 1});
    }
    const size_t used = tiles.size();
    tiles.resize(used + context.integer(0, 5), RowTile{-1, 0, 0});
    const TileSchedule schedule{tiles.data(), static_cast<int64_t>(tiles.size()), ceil_div(700, 128), 128};
    std::vector<int> count(tiles.size() * schedule.column_tiles);
    const int64_t blocks = context.integer(1, 150);
    for (int64_t b = 0; b < blocks; ++b) {
      schedule.each_tile(
          b, blocks, [&](int32_t p) { return columns[p]; },
          [&](const OutputTile& tile) {
            // The map has equal entries: count how many of each problem and column there are.
            const auto first = std::find_if(tiles.begin(), tiles.end(),
                                            [&](const RowTile& t) { return t.problem == tile.rows.problem; });
            ++count[(first - tiles.begin()) * schedule.column_tiles + tile.column / 128];
          });
    }
    for (size_t i = 0; i < tiles.size(); ++i) {
      const int32_t p = tiles[i].problem;
      if (i > 0 && tiles[i - 1].problem == p) continue;
      const auto same = std::count_if(tiles.begin(), tiles.end(), [&](const RowTile& t) { return t.problem == p; });
      for (int64_t c = 0; c < schedule.column_tiles; ++c) {
        const bool exists = p >= 0 && c * 128 < columns[p];
        expect_equal(count[i * schedule.column_tiles + c], exists ? same : 0, "problem ", p, ", column tile ", c);
      }
    }
  }
}

MOLAE_TEST("hopper: weights that the copy engine cannot read have no map", Logic) {
  alignas(16) static const char data[64] = {};
  expect(has_weight_map(DType::BF16, data, 3, 8), "8 columns");
  expect(has_weight_map(DType::F16, data, 1, 4096), "4096 columns");
  for (const int64_t inner : {1, 4, 7, 9, 100}) expect(!has_weight_map(DType::BF16, data, 3, inner), inner, " columns");
  expect(!has_weight_map(DType::BF16, data + 8, 3, 8), "an address that is not a multiple of 16");
  expect(!has_weight_map(DType::F32, data, 3, 8), "f32");
  expect(!has_weight_map(DType::BF16, data, 0, 8) && !has_weight_map(DType::BF16, data, 3, 0), "an empty matrix");
}

void expect_tiles(const LayerTiles& tiles, GemmTile experts, GemmTile groups, GemmTile tokens,
                  const std::string& what) {
  const auto expect_tile = [&](GemmTile actual, GemmTile wanted, const char* kind) {
    expect(actual == wanted, what, ", ", kind, ": ", tile_name(actual), ", wanted ", tile_name(wanted));
  };
  expect_tile(tiles.experts, experts, "experts");
  expect_tile(tiles.groups, groups, "groups");
  expect_tile(tiles.tokens, tokens, "tokens");
}

MOLAE_TEST("hopper: the tiles that are asked for", Logic) {
  const auto parse = [](const char* text, bool hopper = true) { return parse_tile_request(text, hopper, "a GPU"); };
  expect(parse("").family == kDefaultHalfTiles && !parse("").exact, "the default");
  expect(parse("", false).family == TileFamily::Mma, "the default of another GPU");
  expect(parse("mma").family == TileFamily::Mma && parse("hopper").family == TileFamily::Hopper, "a family");
  const RoutedShape shape{500, 2, 7, 3};
  for (const GemmTile tile : kGemmTiles) {
    if (tile == GemmTile::Simt) continue;
    expect(parse(tile_name(tile)).exact == tile, tile_name(tile));
    expect_tiles(choose_tiles(DType::BF16, shape, parse(tile_name(tile))), tile, tile, tile, tile_name(tile));
    if (tile == GemmTile::Stream) continue;  // for every dtype
    const LayerTiles f32 = choose_tiles(DType::F32, shape, parse(tile_name(tile)));
    expect_tiles(f32, GemmTile::Simt, GemmTile::Simt, GemmTile::Simt, "f32");
  }
  for (const char* text : {"simt", "Hopper", "hopper256", "1"}) {
    expect_error(ErrorCode::InvalidArgument, text, [&] { parse(text); });
  }
  for (const char* text : {"hopper", "hopper8", "hopper128"}) {
    expect_error(ErrorCode::InvalidArgument, text, [&] { parse(text, false); });
  }
}

MOLAE_TEST("hopper: a layer's products have tiles by the rows that they have", Logic) {
  const TileRequest mma{TileFamily::Mma, {}}, hopper{TileFamily::Hopper, {}};
  const auto tiles = [](const TileRequest& request, int64_t tokens, int64_t top_k, int64_t experts, int64_t groups) {
    return choose_tiles(DType::BF16, {tokens, top_k, experts, groups}, request);
  };
  // Rows of an expert, a group and the shared expert: 4, 44 and 64; 34, 356 and 512.
  expect_tiles(tiles(hopper, 64, 4, 60, 4), GemmTile::Hopper8, GemmTile::Hopper64, GemmTile::Hopper64, "64 tokens");
  expect_tiles(tiles(mma, 64, 4, 60, 4), GemmTile::Small, GemmTile::Medium, GemmTile::Medium, "64 tokens, mma");
  expect_tiles(tiles(hopper, 512, 4, 60, 4), GemmTile::Hopper64, GemmTile::Hopper128, GemmTile::Hopper128, "512");
  expect_tiles(tiles(mma, 512, 4, 60, 4), GemmTile::Medium, GemmTile::Large, GemmTile::Large, "512, mma");
  // One group has all tokens, and as one problem exactly those.
  expect_tiles(tiles(hopper, 8, 4, 60, 1), GemmTile::Hopper8, GemmTile::Hopper8, GemmTile::Hopper8, "8 tokens");
  expect_tiles(tiles(hopper, 9, 4, 60, 1), GemmTile::Hopper8, GemmTile::Hopper16, GemmTile::Hopper16, "9 tokens");
  // A group of one expert has that one's rows.
  for (const int64_t tokens : {5, 40, 100, 300, 900, 5000}) {
    const LayerTiles each = tiles(hopper, tokens, 2, 8, 8);
    expect(each.groups == each.experts, tokens, " tokens, a group for each expert");
  }
  int32_t rows = 0;
  for (const int64_t average : {1, 5, 6, 10, 12, 20, 30, 60, 80, 1000}) {
    const GemmTile tile = tiles(hopper, average * 8, 1, 8, 2).experts;
    expect(tile_family(tile) == TileFamily::Hopper && tile_rows(tile) >= rows, average, " rows");
    rows = tile_rows(tile);
  }
}

// By counting: the sort of many uniform routings.
MOLAE_TEST("hopper: the rows of a group are foreseen as they are on average", Logic) {
  for (int round = 0; round < 20; ++round) {
    const int64_t size = context.integer(1, 6), groups = context.integer(1, 8), experts = size * groups;
    const int64_t top_k = context.integer(1, std::min<int64_t>(experts, 6)), tokens = 4000;
    std::vector<int32_t> order(experts);
    std::iota(order.begin(), order.end(), 0);
    int64_t rows = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      std::shuffle(order.begin(), order.end(), context.random);
      std::set<int64_t> met;
      for (int64_t k = 0; k < top_k; ++k) met.insert(order[k] / size);
      rows += static_cast<int64_t>(met.size());
    }
    const double counted = static_cast<double>(rows) / groups;
    const double foreseen = average_group_rows({tokens, top_k, experts, groups});
    expect(std::abs(counted - foreseen) < 0.05 * tokens, "counted ", counted, ", foreseen ", foreseen);
  }
  expect_equal(average_group_rows({7, 0, 4, 2}), int64_t{0}, "tokens without experts");
  expect_equal(average_group_rows({7, 4, 4, 2}), int64_t{7}, "tokens with all experts");
}

// --- Products
// ----------------------------------------------------------------------------------------------------------

template <class In>
void check_products(Context& context, GemmTile tile, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    const bool dual = context.chance(0.6), shared = dual && context.chance(0.5);
    RandomProduct<In> product(context, tile, dual, shared);
    const int64_t blocks = context.integer(1, 5);
    product.hide();
    bool shown = false;
    const int64_t boxes_ahead = hopper_gemm_on_host<In>(tile, product.args(), blocks, context.random(), [&] {
      if (!std::exchange(shown, true)) product.show();
    });
    // The first tile of the first block has a first column in any case.
    expect(boxes_ahead > 0 || !product.has_tiles(), "no weights were asked for before the wait");
    product.check(std::string(tile_name(tile)) + (dual ? shared ? " dual, one input" : " dual" : " single"));
  }
}

// The kernel before it runs where the first warpgroup waits for that.
MOLAE_TEST("hopper: random products of every tile on the model", Logic) {
  for (const GemmTile tile : kHopperTiles) {
    check_products<BF16>(context, tile, 8);
    check_products<F16>(context, tile, 4);
  }
}

}  // namespace
}  // namespace molae::test
