#include <algorithm>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "core/tensor/half.h"
#include "native/tensors.h"

// Copies, conversions, transposition, permutation, scans.
namespace molae::test {
namespace {

const Shape kShapes[] = {{0, 5}, {5, 0}, {1, 1}, {3, 7}, {32, 32}, {33, 65}, {1, 1000}, {257, 1}, {130, 129}};

std::string name_of(const char* what, DType dtype, const Shape& shape) {
  return std::string(what) + " " + std::string(dtype_name(dtype)) + " " + shape_name(shape);
}

MOLAE_TEST("moves: upload and download of any size", Device) {
  for (const int64_t count : {0, 1, 3, 1000, (8 << 20) - 1, (8 << 20) + 1, 20 << 20}) {  // more than one staging buffer
    std::vector<uint8_t> bytes(count * 2);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(context.random());
    const Tensor tensor = empty(context.backend, DType::BF16, {count});
    context.backend.upload(bytes.data(), tensor);
    std::vector<uint8_t> back(bytes.size(), 0xee);
    context.backend.download(tensor, back.data());
    expect(back == bytes, "round trip of ", bytes.size(), " bytes");
  }
}

MOLAE_TEST("moves: the host's memory is free again after upload", Device) {
  std::vector<float> values(100000, 1);
  const Tensor tensor = empty(context.backend, DType::F32, {100000});
  context.backend.upload(values.data(), tensor);
  values.assign(values.size(), 2);
  for (const double value : read(context.backend, tensor)) expect_equal(value, 1.0, "value");
}

MOLAE_TEST("moves: conversions between all floats", Device) {
  for (const DType from : kFloats) {
    for (const DType to : kFloats) {
      for (const Shape& shape : kShapes) {
        Values values = random_values(context, element_count(shape), 100);
        const double special[] = {0.0, -0.0, INFINITY, -INFINITY, 1e-7, 6e-8, 1e-40, 65519, 65520, 1e38, 3.4e38, -1};
        for (size_t i = 0; i < values.size() && i < std::size(special); ++i) values[i] = special[i];
        const Tensor source = make_tensor(context, from, shape, values);
        const Tensor target = poisoned(context, to, shape);
        context.backend.copy(source, target);
        const Values actual = read(context.backend, target);
        for (size_t i = 0; i < values.size(); ++i) {
          const auto narrow = static_cast<float>(values[i]);
          const double wanted = to == DType::F64   ? values[i]
                                : to == DType::F32 ? narrow
                                : to == DType::F16 ? f16_to_f32(f32_to_f16(narrow))
                                                   : bf16_to_f32(f32_to_bf16(narrow));
          expect(std::memcmp(&actual[i], &wanted, sizeof wanted) == 0, name_of("from", from, shape), " to ",
                 dtype_name(to), ": ", values[i], " became ", actual[i], ", wanted ", wanted);
        }
      }
    }
  }
}

// The nearest block by the definition, in f64: every value of the block times 1 / scale, rounded, at most half a step
// and what the scale loses as f16 away.
MOLAE_TEST("moves: floats become the nearest blocks, and blocks floats again", Device) {
  if (!context.backend.knows_blocks()) {
    for (const DType dtype : kBlocks) {
      expect_error(ErrorCode::DTypeMismatch, name_of("blocks on this device", dtype, {3, 7}), [&] {
        empty(context.backend, dtype, {3, 7});
      });
    }
    return;
  }
  for (const DType dtype : kBlocks) {
    for (const Shape& shape : kShapes) {
      Values values = random_values(context, element_count(shape), 0.1);
      const Tensor source = make_tensor(context, kFloats[context.integer(0, 3)], shape, values);
      const Tensor blocks = empty(context.backend, dtype, shape);
      context.backend.copy(source, blocks);
      const Values rounded = read(context.backend, blocks);
      for (size_t i = 0; i < values.size(); ++i) {
        const size_t row = i / shape[1] * shape[1], begin = row + (i - row) / kBlock * kBlock;
        const size_t end = std::min<size_t>(begin + kBlock, row + shape[1]);
        double largest = 0;
        for (size_t k = begin; k < end; ++k) largest = std::max(largest, std::abs(values[k]));
        // Of 4 bits the largest is -8: what lies beyond 7 on the other side is cut.
        // A scale as f16 may be half of its smallest step away.
        const double step = 0x1p-25;
        const double bound = dtype == DType::Q8 ? largest / 127 * 0.57 + 127 * step : largest / 8 * 1.01 + 8 * step;
        expect(std::abs(rounded[i] - values[i]) <= bound, name_of("block", dtype, shape), ": ", values[i], " became ",
               rounded[i], " where ", bound, " is allowed");
      }
      for (const DType to : kFloats) {
        const Tensor target = poisoned(context, to, shape);
        context.backend.copy(blocks, target);
        Values wanted = rounded;
        make_tensor(context, to, shape, wanted);
        const Values actual = read(context.backend, target);
        for (size_t i = 0; i < actual.size(); ++i) {
          expect_equal(actual[i], wanted[i], name_of("read back", dtype, shape));
        }
      }
      const Tensor again = empty(context.backend, dtype, shape);
      context.backend.copy(blocks, again);
      expect(read(context.backend, again) == rounded, name_of("copy", dtype, shape));
    }
  }
}

MOLAE_TEST("moves: views of blocks cut between rows, never along them", Device) {
  if (!context.backend.knows_blocks()) return;
  for (const DType dtype : kBlocks) {
    Values values = random_values(context, 4 * 3 * 50);
    const Tensor blocks = make_tensor(context, dtype, {4, 3, 50}, values);
    expect_equal(blocks.bytes(), 4 * 3 * row_bytes(dtype, 50), "bytes");
    const Values part = read(context.backend, blocks.row_range(1, 3).slice(1).row_range(1, 3));
    expect(part == Values(values.begin() + 7 * 50, values.begin() + 9 * 50), "rows of a slice of a range");
    expect(read(context.backend, blocks.reshape({12, 50})) == values, "reshaped");
    expect_error(ErrorCode::ShapeMismatch, "other rows", [&] { blocks.reshape({12, 25, 2}); });
    expect_error(ErrorCode::InvalidArgument, "half a row", [&] { blocks.slice(0).slice(0); });
    expect_error(ErrorCode::InvalidArgument, "no rows", [&] { empty(context.backend, dtype, {64}); });
  }
}

MOLAE_TEST("moves: what no block holds is refused with its place", Device) {
  if (!context.backend.knows_blocks()) return;
  for (const DType dtype : kBlocks) {
    Values values = random_values(context, 3 * 70);
    values[70 + 65] = NAN;
    const Tensor source = make_tensor(context, DType::F32, {3, 70}, values);
    const Tensor blocks = empty(context.backend, dtype, {3, 70});
    try {
      context.backend.copy(source, blocks);
      expect(false, "NaN became a block");
    } catch (const Error& error) {
      expect(error.code() == ErrorCode::NonFinite, error.what());
      expect(std::string(error.what()).find("[1, 65]") != std::string::npos, error.what());
    }
    values[70 + 65] = 1e30;
    const Tensor large = make_tensor(context, DType::F32, {3, 70}, values);
    expect_error(ErrorCode::InvalidArgument, "a scale beyond f16", [&] { context.backend.copy(large, blocks); });
  }
}

MOLAE_TEST("moves: zero", Device) {
  for (const DType dtype : kFloats) {
    const Tensor tensor = poisoned(context, dtype, {37, 5});
    context.backend.zero(tensor.row_range(3, 20));
    const Values values = read(context.backend, tensor);
    for (size_t i = 0; i < values.size(); ++i) {
      const bool inside = i >= 3 * 5 && i < 20 * 5;
      expect(inside ? values[i] == 0 : std::isnan(values[i]), name_of("zero", dtype, tensor.shape()), " at ", i);
    }
  }
}

MOLAE_TEST("moves: transpose", Device) {
  for (const DType dtype : kFloats) {
    for (const Shape& shape : kShapes) {
      Values values = random_values(context, element_count(shape));
      const Tensor from = make_tensor(context, dtype, shape, values);
      const Tensor to = poisoned(context, dtype, {shape[1], shape[0]});
      context.backend.transpose(from, to);
      const Values actual = read(context.backend, to);
      for (int64_t i = 0; i < shape[0]; ++i) {
        for (int64_t j = 0; j < shape[1]; ++j) {
          expect_equal(actual[j * shape[0] + i], values[i * shape[1] + j], name_of("transpose", dtype, shape));
        }
      }
    }
  }
}

MOLAE_TEST("moves: the first NaN or infinity", Device) {
  for (const DType dtype : kFloats) {
    for (const int64_t count : {0, 1, 255, 256, 70000, 2000000}) {
      Values values = random_values(context, count);
      const Tensor clean = make_tensor(context, dtype, {count}, values);
      expect_equal(context.backend.find_non_finite(clean), -1, name_of("clean", dtype, {count}));
      if (count == 0) continue;
      const int64_t first = context.integer(0, count - 1);
      for (int64_t at = first; at < count; at += 1 + count / 5) values[at] = at % 2 ? NAN : -INFINITY;
      const Tensor dirty = make_tensor(context, dtype, {count}, values);
      expect_equal(context.backend.find_non_finite(dirty), first, name_of("dirty", dtype, {count}));
    }
  }
}

MOLAE_TEST("moves: signed permutation", Device) {
  for (const DType dtype : kFloats) {
    for (const Shape& shape : kShapes) {
      for (const SharedSide side : {SharedSide::Input, SharedSide::Output}) {
        const bool columns = side == SharedSide::Input;
        const int64_t size = shape[columns ? 1 : 0];
        std::vector<int32_t> source(size);
        std::vector<int8_t> signs(size);
        for (int64_t i = 0; i < size; ++i) source[i] = static_cast<int32_t>(i);
        std::shuffle(source.begin(), source.end(), context.random);
        for (int8_t& sign : signs) sign = context.chance(0.5) ? 1 : -1;
        Values values = random_values(context, element_count(shape));
        const Tensor w = make_tensor(context, dtype, shape, values);
        const Tensor out = poisoned(context, dtype, shape);
        context.backend.signed_permutation(w, side, source, signs, out);
        const Values actual = read(context.backend, out);
        for (int64_t i = 0; i < shape[0]; ++i) {
          for (int64_t j = 0; j < shape[1]; ++j) {
            const double wanted =
                columns ? signs[j] * values[i * shape[1] + source[j]] : signs[i] * values[source[i] * shape[1] + j];
            expect_equal(actual[i * shape[1] + j], wanted, name_of("permutation", dtype, shape));
          }
        }
      }
    }
  }
}

MOLAE_TEST("moves: squared norm", Device) {
  for (const DType dtype : kFloats) {
    for (const int64_t count : {0, 1, 1000, 300001}) {
      Values values = random_values(context, count);
      const Tensor w = make_tensor(context, dtype, {count}, values);
      double wanted = 0;
      for (const double value : values) wanted += value * value;
      const double actual = context.backend.squared_norm(w);
      expect(std::abs(actual - wanted) <= 1e-12 * wanted, name_of("norm", dtype, {count}), ": ", actual, ", wanted ",
             wanted);
      expect_equal(context.backend.squared_norm(w), actual, "the same sum twice");
    }
  }
}

}  // namespace
}  // namespace molae::test
