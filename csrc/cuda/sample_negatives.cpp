#include "torch_cuda.h"

#include <algorithm>
#include <array>
#include <cstddef>

// after torch_cuda.h, which pins the ABI
#include "../ops/sample_negatives_check.h"
#include "../ops/sample_negatives_overlap.h"
#include "boxes_glue.h"
#include "sample_negatives.h"

namespace tinyops::sample_negatives {
namespace {

constexpr char kName[] = "sample_negatives";
constexpr char kPadded[] = "sample_negatives_padded";
constexpr char kFromBoxes[] = "sample_negatives_from_boxes";

struct Sample {
  Tensor memory;  // of `scratch`
  Scratch scratch;
  int64_t n;
};

Sample allocate(const Tensor& like, int64_t n, int64_t most) {
  const int64_t sorted = sort_size(most);
  constexpr int64_t kState = (sizeof(State) + 7) / 8;
  const Tensor memory =
      empty_on(like, ScalarType::Long, {kState + n + sorted + ceil_div(sorted, 2)});
  auto* const words = mutable_data<unsigned long long>(memory);
  auto* const times = words + kState;
  return {memory,
          {times, times + n, reinterpret_cast<uint32_t*>(times + n + sorted),
           reinterpret_cast<State*>(words)},
          n};
}

// Queues everything up to the sorted sample. No scores: they are 0.
Sample draw(const char* op, const OptionalTensor& scores, const Tensor& overlaps,
            const Tensor& candidates, const Tensor& seed, const Options& options) {
  const ScalarType dtype = common_dtype(scores ? *scores : overlaps, overlaps);
  const Tensor own_overlaps = to_dtype(overlaps, dtype);
  const Tensor own_scores = scores ? to_dtype(*scores, dtype) : own_overlaps;
  const Tensor own_candidates = to_contiguous(candidates);
  const int64_t n = overlaps.size(0), most = std::min(n, options.num_samples);
  const bool is_seed_near = seed.device() == overlaps.device();
  Sample sample = allocate(overlaps, n, most);
  for_compute_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    Weights<T> weights = options.weights<T>();
    if (!scores) weights.score = 0;  // times the overlaps, which are finite
    const Input<T> input{data<T>(own_scores),
                         data<T>(own_overlaps),
                         data<uint8_t>(own_candidates),
                         static_cast<int32_t>(n),
                         weights,
                         is_seed_near ? data<int64_t>(seed) : nullptr,
                         is_seed_near ? 0 : *data<int64_t>(seed)};
    check_cuda(draw_cuda(input, most, sample.scratch, current_stream(overlaps)), op);
  });
  return sample;
}

void copy_to_host(const char* op, void* to, const void* from, size_t bytes, cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), op);
  check_cuda(cudaStreamSynchronize(stream), op);
}

// Says which value of `values` (of any float dtype) was not finite. Waits for the GPU.
[[noreturn]] void refuse(const char* op, const char* name, const Tensor& values, int64_t index) {
  const Tensor wide = to_dtype(values, ScalarType::Double);
  double value = 0;
  copy_to_host(op, &value, data<double>(wide) + index, sizeof(value), current_stream(values));
  refuse_value(op, name, value, index);
}

// Waits for the GPU: the size of the sample, after a look at what the values were.
int64_t size_of(const char* op, const Sample& sample, const OptionalTensor& scores,
                const Tensor& overlaps, bool check_values) {
  struct {
    unsigned long long bad, time;
    unsigned item, candidates, rank, decided, ticket, taken;
  } head;
  static_assert(sizeof(head) == offsetof(State, histogram));
  copy_to_host(op, &head, sample.scratch.state, sizeof(head), current_stream(overlaps));
  if (check_values && head.bad) {
    const auto code = static_cast<int64_t>(~head.bad);
    const bool is_score = scores && code % 2 == 0;
    refuse(op, is_score ? "scores" : "overlaps", is_score ? *scores : overlaps, code / 2);
  }
  return head.taken;
}

// The sample alone: its length is asked of the GPU.
Tensor whole(const char* op, const OptionalTensor& scores, const Tensor& overlaps,
             const Tensor& candidates, const Tensor& seed, const Options& options,
             bool check_values) {
  const Sample sample = draw(op, scores, overlaps, candidates, seed, options);
  const int64_t size = size_of(op, sample, scores, overlaps, check_values);
  const Tensor indices = empty_on(overlaps, ScalarType::Long, {size});
  check_cuda(finish_cuda(sample.scratch, size, mutable_data<int64_t>(indices), nullptr,
                         current_stream(overlaps)),
             op);
  return indices;
}

Tensor sample_negatives_cuda(const Tensor& scores, const Tensor& overlaps, const Tensor& candidates,
                             int64_t num_samples, const Tensor& seed, double balance,
                             int64_t balance_on, double temperature, bool check_values) {
  const Options options{num_samples, balance, balance_on, temperature};
  check_arguments(kName, scores, overlaps, candidates, seed, options);
  const DeviceGuard guard(scores);
  return whole(kName, scores, overlaps, candidates, seed, options, check_values);
}

std::tuple<Tensor, Tensor> sample_negatives_padded_cuda(
    const Tensor& scores, const Tensor& overlaps, const Tensor& candidates, int64_t num_samples,
    const Tensor& seed, double balance, int64_t balance_on, double temperature, bool check_values) {
  const Options options{num_samples, balance, balance_on, temperature};
  check_arguments(kPadded, scores, overlaps, candidates, seed, options);
  const DeviceGuard guard(scores);
  const Sample sample = draw(kPadded, scores, overlaps, candidates, seed, options);
  if (check_values) size_of(kPadded, sample, scores, overlaps, true);
  const Tensor indices = empty_on(scores, ScalarType::Long, {num_samples});
  const Tensor count = empty_on(scores, ScalarType::Long, {});
  check_cuda(finish_cuda(sample.scratch, num_samples, mutable_data<int64_t>(indices),
                         mutable_data<int64_t>(count), current_stream(scores)),
             kPadded);
  return {indices, count};
}

#define TINYOPS_TEXT_OF(name) #name
#define TINYOPS_TEXT(name) TINYOPS_TEXT_OF(name)

Tensor sample_negatives_from_boxes_cuda(const Tensor& boxes, const Tensor& targets,
                                        const OptionalTensor& scores, const Tensor& candidates,
                                        int64_t num_samples, const Tensor& seed, int64_t mode,
                                        double balance, int64_t balance_on, double temperature,
                                        bool check_values) {
  const Options options{num_samples, balance, balance_on, temperature};
  check_from_boxes(kFromBoxes, boxes, targets, scores, candidates, seed, mode, options);
  const DeviceGuard guard(boxes);
  const Tensor own_boxes = to_compute(boxes), own_targets = to_compute(targets);
  if (check_values) {  // here, because the message of an error in an operator called is lost
    ValueChecks values(kFromBoxes, current_stream(boxes));
    values.boxes("boxes", own_boxes);
    values.boxes("targets", own_targets);
    values.ask();
  }
  const Tensor overlaps = largest_overlaps(TINYOPS_TEXT(TINYOPS_NAMESPACE) "::max_overlap",
                                           own_boxes, own_targets, mode);
  return whole(kFromBoxes, scores, overlaps, candidates, seed, options, check_values);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("sample_negatives", TORCH_BOX(&sample_negatives_cuda));
  m.impl("sample_negatives_padded", TORCH_BOX(&sample_negatives_padded_cuda));
  m.impl("sample_negatives_from_boxes", TORCH_BOX(&sample_negatives_from_boxes_cuda));
}

}  // namespace tinyops::sample_negatives
