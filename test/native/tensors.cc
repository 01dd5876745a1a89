#include "native/tensors.h"

#include <cstring>
#include <limits>

#include "core/tensor/blocks.h"
#include "core/tensor/half.h"
#include "native/dot.h"

namespace molae::test {
namespace {

std::vector<uint8_t> encode(DType dtype, Values& values) {
  std::vector<uint8_t> bytes(values.size() * item_size(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto put = [&](auto stored) { std::memcpy(bytes.data() + i * sizeof stored, &stored, sizeof stored); };
    const auto narrow = static_cast<float>(values[i]);
    switch (dtype) {
      case DType::F64:
        put(values[i]);
        break;
      case DType::F32:
        put(narrow);
        values[i] = narrow;
        break;
      case DType::F16:
        put(f32_to_f16(narrow));
        values[i] = f16_to_f32(f32_to_f16(narrow));
        break;
      case DType::BF16:
        put(f32_to_bf16(narrow));
        values[i] = bf16_to_f32(f32_to_bf16(narrow));
        break;
      case DType::I32:
        put(static_cast<int32_t>(values[i]));
        break;
      case DType::Q8:
      case DType::Q4:
        fail(ErrorCode::Internal, "blocks are not made element by element");
    }
  }
  return bytes;
}

// Blocks by the definition: an f16 scale, then integers.
double decode_block(DType dtype, const uint8_t* block, int64_t i) {
  uint16_t scale;
  std::memcpy(&scale, block, sizeof scale);
  const uint8_t* rest = block + sizeof scale;
  const int q = dtype == DType::Q8 ? static_cast<int8_t>(rest[i])
                                   : (i < kBlock / 2 ? rest[i] & 15 : rest[i - kBlock / 2] >> 4) - 8;
  return static_cast<double>(f16_to_f32(scale)) * q;
}

Values decode_blocks(const Tensor& tensor, const std::vector<uint8_t>& bytes) {
  const int64_t cols = tensor.shape().back();
  const size_t stride = row_bytes(tensor.dtype(), cols);
  const size_t block_bytes = row_bytes(tensor.dtype(), kBlock);
  Values values(tensor.elements());
  for (size_t i = 0; i < values.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / cols, col = static_cast<int64_t>(i) % cols;
    values[i] = decode_block(tensor.dtype(), bytes.data() + row * stride + col / kBlock * block_bytes, col % kBlock);
  }
  return values;
}

std::vector<uint8_t> encode_blocks(const Tensor& tensor, const Values& values) {
  const int64_t cols = tensor.shape().back();
  const size_t stride = row_bytes(tensor.dtype(), cols);
  std::vector<uint8_t> bytes(tensor.bytes());
  for (size_t row = 0; cols != 0 && row < values.size() / cols; ++row) {
    const std::vector<float> narrow(values.begin() + row * cols, values.begin() + (row + 1) * cols);
    to_blocks(tensor.dtype(), narrow, static_cast<int64_t>(row), bytes.data() + row * stride);
  }
  return bytes;
}

double decode(DType dtype, const uint8_t* at) {
  const auto get = [&](auto value) {
    std::memcpy(&value, at, sizeof value);
    return value;
  };
  switch (dtype) {
    case DType::F64:
      return get(double{});
    case DType::F32:
      return get(float{});
    case DType::F16:
      return f16_to_f32(get(uint16_t{}));
    case DType::BF16:
      return bf16_to_f32(get(uint16_t{}));
    default:
      return get(int32_t{});
  }
}

}  // namespace

Values random_values(Context& context, size_t count, double scale) {
  Values values(count);
  for (double& value : values) value = scale * context.normal();
  return values;
}

Tensor make_tensor(Context& context, DType dtype, const Shape& shape, Values& values) {
  Tensor tensor = empty(context.backend, dtype, shape);
  const auto bytes = is_block(dtype) ? encode_blocks(tensor, values) : encode(dtype, values);
  if (is_block(dtype)) values = decode_blocks(tensor, bytes);
  context.backend.upload(bytes.data(), tensor);
  return tensor;
}

Tensor make_ints(Context& context, const Shape& shape, const std::vector<int32_t>& values) {
  Tensor tensor = empty(context.backend, DType::I32, shape);
  context.backend.upload(values.data(), tensor);
  return tensor;
}

Tensor poisoned(Context& context, DType dtype, const Shape& shape) {
  Values values(element_count(shape), dtype == DType::I32 ? -1e9 : std::numeric_limits<double>::quiet_NaN());
  return make_tensor(context, dtype, shape, values);
}

Values read(Backend& backend, const Tensor& tensor) {
  std::vector<uint8_t> bytes(tensor.bytes());
  backend.download(tensor, bytes.data());
  if (is_block(tensor.dtype())) return decode_blocks(tensor, bytes);
  Values values(tensor.elements());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = decode(tensor.dtype(), bytes.data() + i * item_size(tensor.dtype()));
  }
  return values;
}

std::vector<int32_t> read_ints(Backend& backend, const Tensor& tensor) {
  std::vector<int32_t> values(tensor.elements());
  backend.download(tensor, values.data());
  return values;
}

RouterSpec plain_spec(int64_t top_k, bool renormalize) {
  RouterSpec spec;
  spec.top_k = top_k;
  spec.renormalize = renormalize;
  return spec;
}

double tolerance(DType dtype) {
  switch (dtype) {
    case DType::F64:
      return 1e-12;
    case DType::F32:
    case DType::Q8:  // computed with in f32
    case DType::Q4:
      return 1e-5;
    default:
      return 1e-2;
  }
}

double tolerance_of_half_sums(const Context& context) { return context.backend.host_memory() ? 1e-6 : 4e-6; }

void expect_close(const Values& actual, const Values& wanted, double relative, const std::string& what) {
  expect_close(actual, wanted, wanted, relative, what);
}

void expect_close(const Values& actual, const Values& wanted, const Values& scale, double relative,
                  const std::string& what) {
  expect_equal(actual.size(), wanted.size(), what, ": elements");
  expect_equal(scale.size(), wanted.size(), what, ": elements of its scale");
  double difference = 0, norm = 0, least = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    expect(std::isfinite(actual[i]), what, ": element ", i, " is ", actual[i], ", wanted ", wanted[i]);
    difference += (actual[i] - wanted[i]) * (actual[i] - wanted[i]);
    norm += wanted[i] * wanted[i];
    least += scale[i] * scale[i];
  }
  norm = std::max(norm, least);
  const double error = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
  expect(error <= relative, what, ": relative error ", error, " is more than ", relative);
}

namespace {

// Of a matrix [rows, cols].
Values transposed(const Values& values, int64_t rows, int64_t cols) {
  Values result(values.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) result[j * rows + i] = values[i * cols + j];
  }
  return result;
}

}  // namespace

Values reference_product(const Values& a, bool transpose_a, const Values& b, bool transpose_b, int64_t m, int64_t n,
                         int64_t k) {
  expect(static_cast<int64_t>(a.size()) >= m * k && static_cast<int64_t>(b.size()) >= k * n, "a reference of ", m, ", ",
         n, " and ", k, " has ", a.size(), " and ", b.size(), " elements");
  // Both along the inner size: a column of a large matrix meets another cache line with every step.
  Values turned_a, turned_b;
  const Values& rows = transpose_a ? turned_a = transposed(a, k, m) : a;
  const Values& columns = transpose_b ? b : turned_b = transposed(b, k, n);
  Values c(m * n);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) c[i * n + j] = dot(rows.data() + i * k, columns.data() + j * k, k);
  }
  return c;
}

Values product_scale(const Values& a, bool transpose_a, const Values& b, bool transpose_b, int64_t m, int64_t n,
                     int64_t k) {
  return roots(reference_product(squared(a), transpose_a, squared(b), transpose_b, m, n, k));
}

Values squared(Values values) {
  for (double& value : values) value *= value;
  return values;
}

Values roots(Values values) {
  for (double& value : values) value = std::sqrt(value);
  return values;
}

}  // namespace molae::test
