// difference_gate on the CPU: what happens on the map, before and after the features pass by.
#include "difference_gate.h"
#include "simd.h"

namespace tinyops::difference_gate {
namespace {

// Twice the mask of vectors and of single elements alike.
template <typename V, typename A>
V codes(V difference, A threshold) {
  const V t = V{} + threshold, none = V{}, two = none + 2;
  return difference > t ? two : (difference < t ? none : none + 1);
}

// line[x] = the sum (kArea) or the largest (kMax) of the codes of column x of a row of blocks.
template <Resize kResize, typename D, typename A = acc_t<D>>
void reduce_rows(const Problem& p, const D* rows, A threshold, A* line) {
  const int64_t width = p.map_width();
  for (int32_t r = 0; r < p.block_rows; ++r) {
    const D* row = rows + r * width;
    for_lanes<A>(width, [&](auto lanes, int64_t x) {
      auto value = codes(lanes.load(row + x), threshold);
      if (r > 0) {
        const auto before = lanes.load(line + x);
        if constexpr (kResize == Resize::kArea)
          value = before + value;
        else
          value = before > value ? before : value;
      }
      lanes.store(line + x, value);
    });
  }
}

template <typename D, typename A>
void fill_row(const Problem& p, const D* rows, acc_t<D> threshold, A* factors, acc_t<D>* line) {
  const int32_t step = p.block_columns;
  if (p.resize == Resize::kNearest) {
    for (int32_t x = 0; x < p.width; ++x)
      factors[x] =
          A(1) + A(0.5) * static_cast<A>(code_of(widen(rows[int64_t{x} * step]), threshold));
  } else if (p.resize == Resize::kArea) {
    reduce_rows<Resize::kArea>(p, rows, threshold, line);
    const A whole = static_cast<A>(2 * p.block_pixels());
    for (int32_t x = 0; x < p.width; ++x, line += step) {
      int64_t total = 0;
      for (int32_t k = 0; k < step; ++k) total += static_cast<int64_t>(line[k]);
      factors[x] = A(1) + static_cast<A>(total) / whole;
    }
  } else {
    reduce_rows<Resize::kMax>(p, rows, threshold, line);
    for (int32_t x = 0; x < p.width; ++x, line += step) {
      acc_t<D> most = 0;
      for (int32_t k = 0; k < step; ++k) most = line[k] > most ? line[k] : most;
      factors[x] = A(1) + A(0.5) * static_cast<A>(most);
    }
  }
}

// The pixel of a block, counted by rows from `block` on, that the maximum is taken from: the first
// with the largest code.
template <typename D>
int64_t first_maximum(const Problem& p, const D* block, acc_t<D> threshold) {
  int64_t first = 0;
  int most = -1;
  for (int32_t r = 0; r < p.block_rows && most < 2; ++r) {
    for (int32_t k = 0; k < p.block_columns && most < 2; ++k) {
      const int64_t at = r * p.map_width() + k;
      const int code = code_of(widen(block[at]), threshold);
      if (code > most) most = code, first = at;
    }
  }
  return first;
}

// Nearest and max: one pixel of every block gets a gradient, the others 0. Gives the row's total.
template <typename D, typename A>
double spread_to_one(const Problem& p, const D* rows, acc_t<D> threshold, const A* sums, D* to) {
  const int64_t pixels = p.map_width() * p.block_rows;
  if (to != nullptr)
    for (int64_t k = 0; k < pixels; ++k) to[k] = narrow<D>(acc_t<D>(0));
  double total = 0;
  for (int32_t x = 0; x < p.width; ++x) {
    int64_t at = int64_t{x} * p.block_columns;
    if (p.resize == Resize::kMax) at += first_maximum(p, rows + at, threshold);
    if (!is_near(widen(rows[at]), threshold)) continue;
    const A value = A(0.5) * sums[x];
    if (to != nullptr) to[at] = narrow<D>(static_cast<acc_t<D>>(value));
    total += static_cast<double>(value);
  }
  return total;
}

template <typename D, typename A>
double spread_to_all(const Problem& p, const D* rows, acc_t<D> threshold, const A* sums, D* to) {
  const int64_t width = p.map_width();
  const A share = A(0.5) / static_cast<A>(p.block_pixels());
  double total = 0;
  for (int32_t r = 0; r < p.block_rows; ++r) {
    for (int32_t x = 0; x < p.width; ++x) {
      const A value = share * sums[x];
      int32_t near = 0;
      for (int32_t k = 0; k < p.block_columns; ++k) {
        const int64_t at = r * width + int64_t{x} * p.block_columns + k;
        const bool is = is_near(widen(rows[at]), threshold);
        if (to != nullptr) to[at] = narrow<D>(is ? static_cast<acc_t<D>>(value) : acc_t<D>(0));
        near += is;
      }
      if (near > 0) total += static_cast<double>(value) * near;
    }
  }
  return total;
}

}  // namespace

template <Isa isa, typename D, typename A>
void fill_factors(const Problem& p, const D* difference, const D* threshold, A* factors,
                  int64_t begin, int64_t end, acc_t<D>* line) {
  const acc_t<D> limit = widen(*threshold);
  for (int64_t row = begin; row < end; ++row)
    fill_row(p, difference + row * p.block_rows * p.map_width(), limit, factors + row * p.width,
             line);
}

template <Isa isa, typename D, typename A>
void spread(const Problem& p, const D* difference, const D* threshold, const A* sums,
            D* d_difference, double* row_totals, int64_t begin, int64_t end) {
  const acc_t<D> limit = widen(*threshold);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t start = row * p.block_rows * p.map_width();
    D* to = d_difference == nullptr ? nullptr : d_difference + start;
    const A* own = sums + row * p.width;
    row_totals[row] = p.resize == Resize::kArea
                          ? spread_to_all(p, difference + start, limit, own, to)
                          : spread_to_one(p, difference + start, limit, own, to);
  }
}

template <Isa isa, typename D>
void finish_threshold(const double* row_totals, int64_t rows, D* d_threshold) {
  double total = 0;
  for (int64_t row = 0; row < rows; ++row) total += row_totals[row];
  *d_threshold = narrow<D>(static_cast<acc_t<D>>(-total));
}

#define TINYOPS_INSTANTIATE(D, A)                                                                  \
  template void fill_factors<kIsa, D, A>(const Problem&, const D*, const D*, A*, int64_t, int64_t, \
                                         acc_t<D>*);                                               \
  template void spread<kIsa, D, A>(const Problem&, const D*, const D*, const A*, D*, double*,      \
                                   int64_t, int64_t);
TINYOPS_INSTANTIATE(float, float)
TINYOPS_INSTANTIATE(double, float)
TINYOPS_INSTANTIATE(half_t, float)
TINYOPS_INSTANTIATE(bfloat16_t, float)
TINYOPS_INSTANTIATE(float, double)
TINYOPS_INSTANTIATE(double, double)
#undef TINYOPS_INSTANTIATE
template void finish_threshold<kIsa, float>(const double*, int64_t, float*);
template void finish_threshold<kIsa, double>(const double*, int64_t, double*);
template void finish_threshold<kIsa, half_t>(const double*, int64_t, half_t*);
template void finish_threshold<kIsa, bfloat16_t>(const double*, int64_t, bfloat16_t*);

}  // namespace tinyops::difference_gate
