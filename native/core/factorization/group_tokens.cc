#include "core/factorization/group_tokens.h"

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "core/expect.h"
#include "core/factorization/products.h"

namespace molae {
namespace {

// Tokens of an expert that losses are measured on, and less than twice as many.
constexpr int64_t kSampleTokens = 256;

// On the host.
struct Found {
  std::vector<int32_t> rows, group_rows;
  std::vector<float> weights;
};

std::unordered_map<int32_t, Found*> by_number(const std::vector<int32_t>& experts, std::vector<Found>& found) {
  std::unordered_map<int32_t, Found*> of_expert;
  for (size_t i = 0; i < experts.size(); ++i) {
    expect_integer(experts[i], "experts", 0, std::numeric_limits<int32_t>::max());
    if (!of_expert.emplace(experts[i], &found[i]).second) {
      fail(ErrorCode::InvalidArgument, "Expected every expert once for experts but received ", experts[i], " twice");
    }
  }
  return of_expert;
}

RoutedTokens uploaded_tokens(Backend& backend, const std::vector<int32_t>& rows, const std::vector<float>& weights) {
  return {uploaded(backend, DType::I32, rows), uploaded(backend, DType::F32, weights)};
}

RoutedTokens sample_of(Backend& backend, const Found& found) {
  std::vector<int32_t> rows;
  std::vector<float> weights;
  const size_t step = std::max<size_t>(1, found.rows.size() / kSampleTokens);
  for (size_t i = 0; i < found.rows.size(); i += step) {
    rows.push_back(found.rows[i]);
    weights.push_back(found.weights[i]);
  }
  return uploaded_tokens(backend, rows, weights);
}

}  // namespace

GroupTokens group_tokens(Backend& backend, const Routing& routing, const std::vector<int32_t>& experts) {
  std::vector<int32_t> ids(routing.ids.elements());
  std::vector<float> weights(routing.weights.elements());
  backend.download(routing.ids, ids.data());
  backend.download(routing.weights, weights.data());
  const size_t top_k = static_cast<size_t>(routing.ids.cols());
  std::vector<Found> found(experts.size());
  const auto of_expert = by_number(experts, found);
  int32_t last = -1, count = 0;
  for (size_t slot = 0; slot < ids.size(); ++slot) {
    const auto expert = of_expert.find(ids[slot]);
    if (expert == of_expert.end()) continue;
    const int32_t row = static_cast<int32_t>(slot / top_k);
    if (row != last) ++count;
    last = row;
    expert->second->rows.push_back(row);
    expert->second->group_rows.push_back(count - 1);
    expert->second->weights.push_back(weights[slot]);
  }
  GroupTokens tokens;
  tokens.distinct = count;
  for (const Found& one : found) {
    tokens.experts.push_back({uploaded_tokens(backend, one.rows, one.weights), sample_of(backend, one),
                              uploaded(backend, DType::I32, one.group_rows)});
    tokens.total += static_cast<int64_t>(one.rows.size());
  }
  return tokens;
}

}  // namespace molae
