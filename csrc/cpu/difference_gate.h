// The CPU kernels of difference_gate, one instantiation per instruction set and type. They work on
// a range of units, so that the caller decides on threads and scratch memory.
//
// The difference may have another type (D) than the features (T); what is computed from both is in
// A = acc_t<T>. Two small kernels know D: one makes masks of the map before the features are read,
// the other spreads the sums over channels to the map afterwards.
#pragma once
#include "../ops/difference_gate.h"
#include "isa.h"

namespace tinyops::difference_gate {

// Sums over the cells of a channel are added up by runs of this many cells, and then the runs in
// order, so that the result does not depend on how the cells were cut into blocks.
constexpr int64_t kRun = 256;

struct Cut {
  int64_t cells, per_image;  // blocks: whole runs, but for the last one of an image
};

// factors[image, cell] = 1 + mask, for rows [begin, end) of cells of all images. `line` is scratch
// for a row of the map.
template <Isa isa, typename D, typename A>
void fill_factors(const Problem& p, const D* difference, const D* threshold, A* factors,
                  int64_t begin, int64_t end, acc_t<D>* line);

template <typename T>
struct ForwardArgs {
  const T *features, *channel_weight;
  const acc_t<T>* factors;
  T* out;
};
// NCHW units are (image, block, channel), so that neighbours share the factors of their block; NHWC
// units are (image, block). `stream` stores past the caches.
template <Isa isa, typename T>
void forward(const Problem& p, const Cut& cut, const ForwardArgs<T>& args, bool stream,
             int64_t begin, int64_t end);

// Gradients that are not wanted are null: d_features; parts, for d_channel_weight; sums, for
// difference and threshold.
template <typename T>
struct BackwardArgs {
  const T *grad, *features, *channel_weight;
  const acc_t<T>* factors;
  T* d_features;
  acc_t<T>* parts;  // [N, runs, C]: of sum_cells grad * features * (1 + mask)
  acc_t<T>* sums;   // [N, cells]: sum_c grad * features * channel_weight
};
// Units are (image, block). `scratch` holds C elements in NHWC, and is not used in NCHW.
template <Isa isa, typename T>
void backward(const Problem& p, const Cut& cut, const BackwardArgs<T>& args, bool stream,
              int64_t begin, int64_t end, acc_t<T>* scratch);

// d_channel_weight of images [begin, end): the sum of their parts.
template <Isa isa, typename T>
void add_parts(const Problem& p, const acc_t<T>* parts, T* d_channel_weight, int64_t begin,
               int64_t end);

// Rows [begin, end) of cells: d_difference (or null), and of every row its share of -d_threshold.
template <Isa isa, typename D, typename A>
void spread(const Problem& p, const D* difference, const D* threshold, const A* sums,
            D* d_difference, double* row_totals, int64_t begin, int64_t end);

// d_threshold of the totals of all rows.
template <Isa isa, typename D>
void finish_threshold(const double* row_totals, int64_t rows, D* d_threshold);

}  // namespace tinyops::difference_gate
