#include <algorithm>
#include <cmath>
#include <vector>

#include "core/tensor/dtype.h"
#include "native/cuda/sorted_routing.h"
#include "native/tensors.h"

// The weighted sums over a token's experts and groups, on the host.
namespace molae::test {
namespace {

using namespace cuda;

// Rows of random sums with NaN behind their columns, as products leave them, in some parts.
template <class In>
class RandomSums {
 public:
  RandomSums(Context& context, int64_t rows, int64_t columns) {
    const int64_t stride = rounded_up(columns) + 8 * context.integer(0, 1);
    const auto splits = static_cast<int32_t>(context.integer(1, 3));
    memory_ = HostMemory(splits * rows * stride * sizeof(Sum<In>));
    sums_ = {memory_.as<Sum<In>>(), stride, rows * stride, splits};
    for (int64_t row = 0; row < splits * rows; ++row) {
      for (int64_t col = 0; col < columns; ++col) {
        sums_.data[row * stride + col] = static_cast<Sum<In>>(context.normal());
      }
    }
  }

  const SplitSums<In>& sums() const { return sums_; }
  // Calls visit(value) for each part.
  template <class Visit>
  void each_part(int64_t row, int64_t col, Visit visit) const {
    for (int32_t split = 0; split < sums_.splits; ++split) {
      visit(static_cast<double>(sums_.data[split * sums_.plane + row * sums_.stride + col]));
    }
  }

 private:
  HostMemory memory_;
  SplitSums<In> sums_;
};

double element(DType dtype, const void* data, int64_t index) {
  return dtype == DType::F64 ? static_cast<const double*>(data)[index] : load_as<float>(dtype, data, index);
}

// y in the middle of memory that must not change, `shift` elements from where it would be aligned.
class Output {
 public:
  Output(DType dtype, int64_t count, int64_t shift)
      : dtype_(dtype), first_(kMargin + shift), count_(count), memory_((count + 2 * kMargin + shift) * size()) {}

  void* y() const { return memory_.as<char>() + first_ * size(); }
  double at(int64_t i) const { return element(dtype_, y(), i); }
  void check_margins() const {
    const auto* bytes = memory_.as<const unsigned char>();
    const auto untouched = [&](int64_t begin, int64_t end) {
      return std::all_of(bytes + begin * size(), bytes + end * size(), [](unsigned char byte) { return byte == 0xff; });
    };
    expect(untouched(0, first_), "a write before y");
    expect(untouched(first_ + count_, first_ + count_ + kMargin), "a write behind y");
  }

 private:
  static constexpr int64_t kMargin = 64;
  int64_t size() const { return static_cast<int64_t>(item_size(dtype_)); }

  DType dtype_;
  int64_t first_, count_;
  HostMemory memory_;
};

template <class In>
void check_output(Context& context, int64_t hidden_size) {
  RandomRouting routing = random_routing(context, 20, 12);
  for (int32_t& id : routing.ids) {
    if (context.chance(0.05)) id = -1;  // of no expert: reported elsewhere, and nothing here
  }
  const Sorted sorted(routing, {16, 16, 16});
  const RoutingPlan& plan = sorted.plan;
  const bool latent = context.chance(0.5), shared = context.chance(0.5), scaled = context.chance(0.5);
  const int64_t pairs = routing.tokens * routing.top_k;
  const RandomSums<In> parts(context, latent ? sorted.latent_bound : pairs, hidden_size);
  const RandomSums<In> shared_out(context, routing.tokens, hidden_size);
  std::vector<Sum<In>> scale(routing.tokens);
  for (Sum<In>& value : scale) value = static_cast<Sum<In>>(context.normal());

  OutputCombine<In> args{};
  args.plan = plan;
  args.weights = routing.weights.data();
  args.latent = latent;
  args.parts = parts.sums();
  if (shared) args.shared_out = shared_out.sums();
  if (scaled) args.shared_scale = scale.data();
  args.hidden_size = static_cast<int32_t>(hidden_size);
  args.dtype = kFloats[context.integer(0, 3)];
  const int64_t shift = context.chance(0.5) ? 0 : context.integer(1, 15);
  const Output output(args.dtype, routing.tokens * hidden_size, shift);
  args.y = output.y();
  combine_on_host(args);

  output.check_margins();
  const double relative =
      std::max(tolerance(DTypeOf<In>::value == DType::F64 ? DType::F64 : DType::F32), tolerance(args.dtype));
  const double smallest = args.dtype == DType::F16 ? 0x1p-24 : 0;  // the step of its subnormals
  for (int64_t t = 0; t < routing.tokens; ++t) {
    for (int64_t col = 0; col < hidden_size; ++col) {
      double wanted = 0, size = 0;
      const auto add = [&](double weight, const RandomSums<In>& sums, int64_t row) {
        sums.each_part(row, col, [&](double value) {
          wanted += weight * value;
          size += std::abs(weight * value);
        });
      };
      std::vector<int32_t> met;
      for (int64_t slot = t * routing.top_k; slot < (t + 1) * routing.top_k; ++slot) {
        if (routing.ids[slot] < 0) continue;
        if (!latent) {
          add(routing.weights[slot], parts, plan.row_of_slot[slot]);
          continue;
        }
        const int32_t group = routing.group_of[routing.ids[slot]];
        if (std::find(met.begin(), met.end(), group) != met.end()) continue;
        met.push_back(group);
        add(1, parts, plan.slot_latent[slot]);
      }
      if (shared) add(scaled ? scale[t] : 1, shared_out, t);
      const double actual = output.at(t * hidden_size + col);
      expect(std::abs(actual - wanted) <= relative * size + smallest, dtype_name(args.dtype), " y of token ", t,
             ", column ", col, " of ", hidden_size, " is ", actual, ", wanted ", wanted);
    }
  }
}

// Columns are taken four at a time, y is written so where it is aligned: every size of the rest, at every alignment.
MOLAE_TEST("logic: outputs of every width are the sums of their parts, and nothing else is written", Logic) {
  for (int round = 0; round < 30; ++round) {
    const int64_t hidden_size = round < 12 ? round + 1 : context.integer(13, 600);
    check_output<BF16>(context, hidden_size);
    check_output<F16>(context, hidden_size);
    check_output<float>(context, hidden_size);
    check_output<double>(context, hidden_size);
  }
}

}  // namespace
}  // namespace molae::test
