#include "native/decoder_cases.h"

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace molae::test {
namespace {

constexpr DType kWeights[] = {DType::F32, DType::F16, DType::BF16};

DType random_weight(Context& context) { return kWeights[context.integer(0, 2)]; }

std::string name_of(const char* what, std::initializer_list<int64_t> sizes) {
  return std::string(what) + " " + shape_name(Shape(sizes));
}

Tensor floats(Context& context, const Shape& shape, Values& values) {
  return make_tensor(context, DType::F32, shape, values);
}

std::vector<int32_t> random_ints(Context& context, int64_t count, int64_t most) {
  std::vector<int32_t> values(count);
  for (int32_t& value : values) value = static_cast<int32_t>(context.integer(0, most));
  return values;
}

// Sequences with some past, now and then without any query, and how many queries and keys they have together. Between
// two sequences there may be keys that belong to none.
struct RandomSequences {
  std::vector<Sequence> sequences;
  int64_t queries = 0, keys = 0;
};

RandomSequences random_sequences(Context& context) {
  RandomSequences result;
  const int64_t count = context.integer(0, 4);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t queries = context.chance(0.2) ? 0 : context.integer(1, context.chance(0.5) ? 3 : 90);
    const int64_t past = context.chance(0.5) ? 0 : context.integer(1, 150);
    result.keys += context.chance(0.3) ? context.integer(1, 5) : 0;
    result.sequences.push_back({result.queries, result.queries + queries, result.keys, result.keys + past + queries});
    result.queries += queries;
    result.keys += past + queries;
  }
  return result;
}

// One query of one head, by definition.
void attend(const AttentionSpec& spec, const Sequence& s, int64_t query, int64_t head, const Values& q,
            const Values& keys, const Values& values, Values& out) {
  const int64_t kv_head = head / (spec.heads / spec.kv_heads);
  const int64_t end = s.key_end - (s.query_end - 1 - query);
  const int64_t begin = spec.window > 0 ? std::max(s.key_begin, end - spec.window) : s.key_begin;
  Values weights;
  double largest = -INFINITY, sum = 0;
  for (int64_t key = begin; key < end; ++key) {
    double score = 0;
    for (int64_t i = 0; i < spec.head_size; ++i) {
      score += q[(query * spec.heads + head) * spec.head_size + i] *
               keys[(key * spec.kv_heads + kv_head) * spec.head_size + i];
    }
    weights.push_back(spec.scale * score);
    largest = std::max(largest, weights.back());
  }
  for (double& weight : weights) sum += weight = std::exp(weight - largest);
  for (int64_t j = 0; j < spec.value_size; ++j) {
    double value = 0;
    for (int64_t key = begin; key < end; ++key) {
      value += weights[key - begin] / sum * values[(key * spec.kv_heads + kv_head) * spec.value_size + j];
    }
    out[(query * spec.heads + head) * spec.value_size + j] = value;
  }
}

void check_attention_of(Context& context, Decoder& decoder, const AttentionSpec& spec, const RandomSequences& random) {
  Values q = random_values(context, random.queries * spec.heads * spec.head_size);
  Values keys = random_values(context, random.keys * spec.kv_heads * spec.head_size);
  Values values = random_values(context, random.keys * spec.kv_heads * spec.value_size);
  const Tensor out = poisoned(context, DType::F32, {random.queries, spec.heads * spec.value_size});
  decoder.attention(floats(context, {random.queries, spec.heads * spec.head_size}, q),
                    floats(context, {random.keys, spec.kv_heads * spec.head_size}, keys),
                    floats(context, {random.keys, spec.kv_heads * spec.value_size}, values), random.sequences, spec,
                    out);
  Values wanted(out.elements()), scale(out.elements()), sizes = values;
  for (double& value : sizes) value = std::abs(value);
  for (const Sequence& s : random.sequences) {
    for (int64_t query = s.query_begin; query < s.query_end; ++query) {
      for (int64_t head = 0; head < spec.heads; ++head) {
        attend(spec, s, query, head, q, keys, values, wanted);
        attend(spec, s, query, head, q, keys, sizes, scale);
      }
    }
  }
  expect_close(
      read(context.backend, out), wanted, scale, 1e-5,
      name_of("attention (queries, keys, heads, kv heads, head size, value size, window)",
              {random.queries, random.keys, spec.heads, spec.kv_heads, spec.head_size, spec.value_size, spec.window}));
}

// Logits, some of them masked by -infinity; never the whole row.
Values random_logits(Context& context, int64_t rows, int64_t size) {
  Values logits = random_values(context, rows * size, context.chance(0.5) ? 3 : 300);
  if (context.chance(0.5)) {
    for (double& logit : logits) logit = context.chance(0.2) ? -INFINITY : std::round(logit);  // ties, too
    for (int64_t t = 0; t < rows; ++t) logits[t * size + context.integer(0, size - 1)] = 1;
  }
  return logits;
}

Values log_softmax(const Values& logits, int64_t row, int64_t size) {
  Values result(logits.begin() + row * size, logits.begin() + (row + 1) * size);
  const double largest = *std::max_element(result.begin(), result.end());
  double sum = 0;
  for (const double logit : result) sum += std::exp(logit - largest);
  for (double& logit : result) logit -= largest + std::log(sum);
  return result;
}

int64_t place_of_largest(const Values& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

// Sums in f64: only their order may differ. Infinite where the reference is.
void expect_f64(double actual, double wanted, const std::string& what) {
  const bool close = actual == wanted || std::abs(actual - wanted) <= 1e-11 * (1 + std::abs(wanted));
  expect(close, what, ": got ", actual, ", wanted ", wanted);
}

}  // namespace

void check_gather_rows(Context& context, Decoder& decoder) {
  for (int round = 0; round < 30; ++round) {
    const int64_t rows = context.integer(1, 50), width = context.integer(1, 700);
    const int64_t tokens = round < 2 ? round : context.integer(2, 20);
    Values table = random_values(context, rows * width);
    const Tensor source = make_tensor(context, random_weight(context), {rows, width}, table);
    const auto ids = random_ints(context, tokens, rows - 1);
    const Tensor out = poisoned(context, DType::F32, {tokens, width});
    decoder.gather_rows(source, make_ints(context, {tokens}, ids), out);
    const Values actual = read(context.backend, out);
    for (size_t i = 0; i < actual.size(); ++i) {
      expect_equal(actual[i], table[ids[i / width] * width + i % width], name_of("gather", {rows, width}));
    }
  }
}

void check_linear(Context& context, Decoder& decoder) {
  const int64_t row_counts[] = {0, 1, 1, 2, 3, 4, 5, 6, 17, 70};
  for (int round = 0; round < 150; ++round) {
    const int64_t rows = row_counts[context.integer(0, std::size(row_counts) - 1)];
    const int64_t unit = context.chance(0.6) ? 8 : 1;  // with and without loads of whole vectors
    const int64_t inner = unit * context.integer(1, 600 / unit), cols = context.integer(1, 150);
    const DType dtype = random_weight(context);
    Values x = random_values(context, rows * inner, context.chance(0.5) ? 1 : 1e4);
    Values w = random_values(context, cols * inner), b = random_values(context, cols, 30);
    // A view that does not begin where memory does.
    const int64_t skipped = context.integer(0, 2);
    Values padded(skipped * inner, NAN);
    padded.insert(padded.end(), x.begin(), x.end());
    const Tensor input = floats(context, {skipped + rows, inner}, padded).row_range(skipped, skipped + rows);
    x.assign(padded.begin() + skipped * inner, padded.end());
    const Tensor weight = make_tensor(context, dtype, {cols, inner}, w);
    const bool biased = context.chance(0.5);
    const Tensor bias = biased ? make_tensor(context, random_weight(context), {cols}, b) : Tensor();
    const Tensor out = poisoned(context, DType::F32, {rows, cols});
    decoder.linear(input, weight, bias, out);
    Values wanted = reference_product(x, false, w, true, rows, cols, inner);
    Values scale = product_scale(x, false, w, true, rows, cols, inner);
    for (size_t i = 0; biased && i < wanted.size(); ++i) {
      wanted[i] += b[i % cols];
      scale[i] = std::hypot(scale[i], b[i % cols]);
    }
    expect_close(read(context.backend, out), wanted, scale, 1e-5,
                 name_of("linear", {rows, cols, inner}) + " " + std::string(dtype_name(dtype)));
  }
}

void check_rms_norm(Context& context, Decoder& decoder) {
  for (int round = 0; round < 40; ++round) {
    const int64_t rows = round < 2 ? round : context.integer(2, 20);
    const int64_t groups = context.integer(1, 4), size = context.integer(1, 400);
    Values x = random_values(context, rows * groups * size, context.chance(0.5) ? 1 : 1e-4);
    Values w = random_values(context, size);
    const Tensor input = floats(context, {rows, groups * size}, x);
    const Tensor weight = make_tensor(context, random_weight(context), {size}, w);
    const bool in_place = context.chance(0.5);
    const Tensor out = in_place ? input : poisoned(context, DType::F32, input.shape());
    decoder.rms_norm(input, weight, 1e-6f, out);
    Values wanted(x.size());
    for (size_t begin = 0; begin < x.size(); begin += size) {
      double squares = 0;
      for (int64_t i = 0; i < size; ++i) squares += x[begin + i] * x[begin + i];
      for (int64_t i = 0; i < size; ++i) {
        wanted[begin + i] = x[begin + i] / std::sqrt(squares / static_cast<double>(size) + 1e-6f) * w[i];
      }
    }
    expect_close(read(context.backend, out), wanted, 1e-6, name_of("rms norm", {rows, groups, size}));
  }
}

void check_rotary(Context& context, Decoder& decoder) {
  for (int round = 0; round < 40; ++round) {
    const int64_t tokens = round < 2 ? round : context.integer(2, 20);
    const int64_t pairs = context.integer(0, context.chance(0.2) ? 300 : 40);
    RotarySpec spec;
    spec.heads = context.integer(1, 5);
    spec.offset = context.integer(0, 9);
    spec.head_size = std::max<int64_t>(1, spec.offset + 2 * pairs + context.integer(0, 9));
    spec.pairs = context.chance(0.5) ? RotaryPairs::Halves : RotaryPairs::Neighbours;
    spec.magnitude = context.chance(0.5) ? 1.0f : 1.3f;
    Values x = random_values(context, tokens * spec.heads * spec.head_size), frequencies(pairs);
    for (int64_t j = 0; j < pairs; ++j) frequencies[j] = std::pow(1e4, -static_cast<double>(j) / 20);
    const auto positions = random_ints(context, tokens, 100000);
    const Tensor values = floats(context, {tokens, spec.heads * spec.head_size}, x);
    const Tensor angles = floats(context, {pairs}, frequencies);
    decoder.rotary(values, make_ints(context, {tokens}, positions), angles, spec);
    Values wanted = x;
    for (int64_t head = 0; head < tokens * spec.heads; ++head) {
      for (int64_t j = 0; j < pairs; ++j) {
        const bool halves = spec.pairs == RotaryPairs::Halves;
        const int64_t begin = head * spec.head_size + spec.offset;
        const int64_t a = begin + (halves ? j : 2 * j), b = begin + (halves ? j + pairs : 2 * j + 1);
        const float angle = static_cast<float>(positions[head / spec.heads]) * static_cast<float>(frequencies[j]);
        const double cosine = std::cos(static_cast<double>(angle)), sine = std::sin(static_cast<double>(angle));
        wanted[a] = spec.magnitude * (x[a] * cosine - x[b] * sine);
        wanted[b] = spec.magnitude * (x[b] * cosine + x[a] * sine);
      }
    }
    expect_close(read(context.backend, values), wanted, 1e-6, name_of("rotary", {tokens, spec.heads, pairs}));
  }
}

void check_attention(Context& context, Decoder& decoder) {
  for (int round = 0; round < 40; ++round) {
    AttentionSpec spec;
    spec.kv_heads = context.integer(1, 3);
    spec.heads = spec.kv_heads * context.integer(1, 4);
    spec.head_size = context.integer(1, 100);
    spec.value_size = context.chance(0.5) ? spec.head_size : context.integer(1, 100);
    const int64_t windows[] = {0, 0, 1, 3, 50, 64};
    spec.window = windows[context.integer(0, 5)];
    spec.scale = context.chance(0.5) ? 1 / std::sqrt(static_cast<float>(spec.head_size)) : 2.0f;
    check_attention_of(context, decoder, spec, random_sequences(context));
  }
  // More heads a key than a tile has rows, values wider than one block takes: multi-head latent attention, absorbed.
  AttentionSpec wide;
  wide.heads = 40;
  wide.kv_heads = 1;
  wide.head_size = 145;
  wide.value_size = 300;
  wide.scale = 0.1f;
  for (const int64_t window : {0, 7}) {
    wide.window = window;
    RandomSequences random;
    random.sequences = {{0, 3, 0, 90}, {3, 3, 90, 90}, {3, 4, 90, 91}};
    random.queries = 4;
    random.keys = 91;
    check_attention_of(context, decoder, wide, random);
  }
  // Few queries and many keys, as in decoding, beside a long prompt; and one key more than a part has.
  for (int round = 0; round < 10; ++round) {
    AttentionSpec spec;
    spec.kv_heads = context.integer(1, 2);
    spec.heads = spec.kv_heads * context.integer(1, 5);
    spec.head_size = context.integer(1, 40);
    spec.value_size = round == 0 ? 150 : context.integer(1, 40);
    const int64_t windows[] = {0, 0, 1, 129, 200};
    spec.window = windows[context.integer(0, 4)];
    spec.scale = context.chance(0.5) ? 1 / std::sqrt(static_cast<float>(spec.head_size)) : 2.0f;
    RandomSequences random;
    const auto add = [&](int64_t queries, int64_t keys) {
      random.sequences.push_back({random.queries, random.queries + queries, random.keys, random.keys + keys});
      random.queries += queries;
      random.keys += keys;
    };
    add(1, context.integer(129, 900));
    add(context.integer(1, 30), context.integer(300, 500));
    add(context.integer(129, 200), context.integer(200, 300));
    add(1, 129);
    check_attention_of(context, decoder, spec, random);
  }
}

void check_copy_head_columns(Context& context, Decoder& decoder) {
  for (int round = 0; round < 40; ++round) {
    const int64_t tokens = round < 2 ? round : context.integer(2, 20);
    HeadColumns columns;
    columns.heads = context.integer(1, 5);
    columns.from_heads = context.chance(0.5) ? 1 : columns.heads;
    columns.width = context.integer(1, 90);
    columns.from_offset = context.integer(0, 5);
    columns.to_offset = context.integer(0, 5);
    const int64_t from_size = columns.from_offset + columns.width + context.integer(0, 5);
    const int64_t to_size = columns.to_offset + columns.width + context.integer(0, 5);
    Values source = random_values(context, tokens * columns.from_heads * from_size);
    Values target = random_values(context, tokens * columns.heads * to_size);
    const Tensor from = floats(context, {tokens, columns.from_heads * from_size}, source);
    const Tensor to = floats(context, {tokens, columns.heads * to_size}, target);
    decoder.copy_head_columns(from, to, columns);
    for (int64_t i = 0; i < tokens * columns.heads; ++i) {
      const int64_t from_head = columns.from_heads == 1 ? i / columns.heads : i;
      for (int64_t j = 0; j < columns.width; ++j) {
        target[i * to_size + columns.to_offset + j] = source[from_head * from_size + columns.from_offset + j];
      }
    }
    expect(read(context.backend, to) == target, name_of("copy head columns", {tokens, columns.heads, columns.width}));
  }
}

void check_add(Context& context, Decoder& decoder) {
  for (const int64_t rows : {0, 1, 7, 300}) {
    for (const int64_t cols : {1, 17}) {
      Values a = random_values(context, rows * cols), b = random_values(context, rows * cols);
      const Tensor from = floats(context, {rows, cols}, a), to = floats(context, {rows, cols}, b);
      decoder.add(from, to);
      for (size_t i = 0; i < a.size(); ++i) b[i] = static_cast<float>(b[i] + a[i]);
      expect(read(context.backend, to) == b, name_of("add", {rows, cols}));
    }
  }
}

void check_cross_entropy(Context& context, Decoder& decoder) {
  for (int round = 0; round < 40; ++round) {
    const int64_t rows = round < 2 ? round : context.integer(2, 12), size = context.integer(1, 1500);
    Values logits = random_logits(context, rows, size);
    const auto targets = random_ints(context, rows, size - 1);
    const Tensor losses = poisoned(context, DType::F64, {rows});
    decoder.cross_entropy(floats(context, {rows, size}, logits), make_ints(context, {rows}, targets), losses);
    const Values actual = read(context.backend, losses);
    for (int64_t t = 0; t < rows; ++t) {
      expect_f64(actual[t], -log_softmax(logits, t, size)[targets[t]], name_of("loss", {t, size}));
    }
  }
}

void check_compare_distributions(Context& context, Decoder& decoder) {
  for (int round = 0; round < 40; ++round) {
    const int64_t rows = round < 2 ? round : context.integer(2, 12), size = context.integer(1, 1500);
    Values p = random_logits(context, rows, size), q = context.chance(0.2) ? p : random_logits(context, rows, size);
    const Tensor divergences = poisoned(context, DType::F64, {rows}),
                 agreements = poisoned(context, DType::I32, {rows});
    decoder.compare_distributions(floats(context, {rows, size}, p), floats(context, {rows, size}, q), divergences,
                                  agreements);
    const Values actual = read(context.backend, divergences);
    const auto agree = read_ints(context.backend, agreements);
    for (int64_t t = 0; t < rows; ++t) {
      const Values a = log_softmax(p, t, size), b = log_softmax(q, t, size);
      double wanted = 0;
      for (int64_t j = 0; j < size; ++j) {
        if (std::exp(a[j]) > 0) wanted += std::exp(a[j]) * (a[j] - b[j]);
      }
      expect_f64(actual[t], wanted, name_of("divergence", {t, size}));
      expect_equal(agree[t], place_of_largest(a) == place_of_largest(b) ? 1 : 0, name_of("agreement", {t, size}));
    }
  }
}

void check_bad_input(Context& context, Decoder& decoder, const ExpectFailure& expect_failure) {
  const int64_t rows = 9, size = 300;
  const int64_t bad = context.integer(0, rows - 1);
  Values table = random_values(context, size * 4);
  const Tensor source = make_tensor(context, DType::BF16, {size, 4}, table);
  const Tensor losses = poisoned(context, DType::F64, {rows});
  for (const int32_t wrong : {-1, static_cast<int32_t>(size), std::numeric_limits<int32_t>::max()}) {
    auto ids = random_ints(context, rows, size - 1);
    ids[bad] = wrong;
    const Tensor given = make_ints(context, {rows}, ids);
    expect_failure(ErrorCode::InvalidArgument, bad, [&] {
      decoder.gather_rows(source, given, poisoned(context, DType::F32, {rows, 4}));
    });
    Values logits = random_values(context, rows * size);
    expect_failure(ErrorCode::InvalidArgument, bad, [&] {
      decoder.cross_entropy(floats(context, {rows, size}, logits), given, losses);
    });
  }
  const Tensor targets = make_ints(context, {rows}, random_ints(context, rows, size - 1));
  for (const double wrong : {NAN, INFINITY}) {
    Values clean = random_values(context, rows * size), logits = clean;
    logits[bad * size + context.integer(0, size - 1)] = wrong;
    const Tensor p = floats(context, {rows, size}, logits), q = floats(context, {rows, size}, clean);
    const Tensor agreements = poisoned(context, DType::I32, {rows});
    expect_failure(ErrorCode::NonFinite, bad, [&] { decoder.cross_entropy(p, targets, losses); });
    expect_failure(ErrorCode::NonFinite, bad, [&] { decoder.compare_distributions(p, q, losses, agreements); });
    expect_failure(ErrorCode::NonFinite, bad, [&] { decoder.compare_distributions(q, p, losses, agreements); });
    decoder.cross_entropy(q, targets, losses);  // works on
  }
}

}  // namespace molae::test
