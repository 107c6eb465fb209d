// The matcher on numpy arrays: checks, and no copies.
#include "module.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "match.h"

namespace py = pybind11;
using namespace tinyops::eval;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;  // pybind refuses other types: .noconvert() below

void check(bool ok, const char* what) {
  if (!ok) throw py::value_error(what);
}

std::string text(const std::vector<py::ssize_t>& shape) {
  std::string result = "[";
  for (const auto size : shape) {
    if (result.size() > 1) result.append(", ");
    result.append(std::to_string(size));
  }
  return result.append("]");
}

template <typename T>
const T* data(const Array<T>& array, const std::vector<py::ssize_t>& shape, const char* name) {
  const std::vector<py::ssize_t> got(array.shape(), array.shape() + array.ndim());
  if (got != shape)
    throw py::value_error(std::string(name) + ": expected " + text(shape) + ", got " + text(got));
  return array.data();
}

void check_cells(const int64_t* cells, int64_t count, const Rules& rules, const char* name) {
  const auto wrong = [&](int64_t c) { return c < 0 || c >= rules.images * rules.classes; };
  const int64_t k = std::find_if(cells, cells + count, wrong) - cells;
  if (k < count)
    throw py::value_error(std::string(name) + "[" + std::to_string(k) +
                          "] must be in 0..classes * images - 1, got " + std::to_string(cells[k]));
}

// What Python holds: the result, and the rules that it was made by.
struct Held {
  Rules rules;
  Matches matches;
};

template <typename T>
py::array view(const std::vector<T>& values, std::vector<py::ssize_t> shape, py::handle owner) {
  py::array_t<T> result(std::move(shape), values.data(), owner);
  result.attr("setflags")(py::arg("write") = false);
  return result;
}

template <typename T>
py::array give(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  const T* const pointer = owned->data();
  const py::capsule owner(owned.get(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
  owned.release();
  return py::array_t<T>(std::move(shape), pointer, owner);
}

std::unique_ptr<Held> match_arrays(
    const Array<int64_t>& object_cells, const Array<double>& object_boxes,
    const Array<double>& object_areas, const Array<bool>& ignored, const Array<bool>& region,
    const Array<bool>& unfindable, const Array<int64_t>& cells, const Array<double>& boxes,
    const Array<double>& scores, const Array<bool>& outside, int64_t classes, int64_t images,
    const std::vector<double>& thresholds, const std::vector<double>& absorb, bool drop_outside,
    int64_t most, bool targets, int64_t threads) {
  auto held = std::make_unique<Held>();
  Rules& rules = held->rules;
  rules = {images,     classes, ignored.ndim() == 2 ? ignored.shape(0) : 0,
           thresholds, absorb,  drop_outside,
           most,       targets};
  check(classes >= 0 && images >= 0 && most >= 1 && threads >= 1,
        "classes and images must not be negative, most and threads must be positive");
  check(!thresholds.empty() && thresholds.size() <= 64, "thresholds: expected 1 to 64");
  for (const double t : thresholds) check(t > 0 && t <= 1, "thresholds must be in (0, 1]");
  check(absorb.empty() || absorb.size() == thresholds.size(), "absorb: one for each threshold");
  for (const double t : absorb) check(t > 0, "absorb must be positive");
  const py::ssize_t ranges = rules.ranges, n = object_cells.size(), k = cells.size();
  check(std::max(n, k) <= std::numeric_limits<int32_t>::max(), "too many boxes: 2**31 or more");
  const Objects objects{n,
                        data(object_cells, {n}, "object_cells"),
                        data(object_boxes, {n, 4}, "object_boxes"),
                        data(object_areas, {n}, "object_areas"),
                        reinterpret_cast<const uint8_t*>(data(ignored, {ranges, n}, "ignored")),
                        reinterpret_cast<const uint8_t*>(data(region, {ranges, n}, "region")),
                        reinterpret_cast<const uint8_t*>(data(unfindable, {n}, "unfindable"))};
  const Found found{k, data(cells, {k}, "cells"), data(boxes, {k, 4}, "boxes"),
                    data(scores, {k}, "scores"),
                    reinterpret_cast<const uint8_t*>(data(outside, {ranges, k}, "outside"))};
  check_cells(objects.cell, n, rules, "object_cells");
  check_cells(found.cell, k, rules, "cells");
  for (py::ssize_t i = 0; i < k; ++i) check(!std::isnan(found.score[i]), "scores must not be NaN");
  const py::gil_scoped_release release;
  held->matches = match(objects, found, rules, threads);
  return held;
}

py::tuple accumulate_arrays(const Held& held, const Array<int64_t>& positives,
                            const std::vector<int64_t>& limits, const std::vector<double>& points,
                            int64_t threads) {
  const Rules& rules = held.rules;
  const int64_t* const counts = data(positives, {rules.ranges, rules.classes}, "positives");
  check(threads >= 1, "threads must be positive");
  const auto size = [](const auto& x) { return static_cast<py::ssize_t>(x.size()); };
  Curves curves;
  {
    const py::gil_scoped_release release;
    curves = accumulate(held.matches, rules, counts, limits, points, threads);
  }
  std::vector<py::ssize_t> shape{size(limits), rules.ranges, size(rules.thresholds), rules.classes};
  py::array recall = give(std::move(curves.recall), shape);
  shape.push_back(size(points));
  return py::make_tuple(give(std::move(curves.precision), shape), recall);
}

}  // namespace

void register_match(py::module_& m) {
  const auto planes = [](const Held& held) {
    return std::vector<py::ssize_t>{held.rules.ranges,
                                    static_cast<py::ssize_t>(held.rules.thresholds.size()),
                                    static_cast<py::ssize_t>(held.matches.rows.size())};
  };
  const auto slots = [](const auto& values) {
    return std::vector<py::ssize_t>{static_cast<py::ssize_t>(values.size())};
  };
  py::class_<Held>(m, "Matches", "Which detection found which object; see csrc/eval/match.h.")
      .def_property_readonly("rows",
                             [slots](py::object self) {
                               const auto& rows = self.cast<const Held&>().matches.rows;
                               return view(rows, slots(rows), self);
                             })
      .def_property_readonly("ranks",
                             [slots](py::object self) {
                               const auto& ranks = self.cast<const Held&>().matches.ranks;
                               return view(ranks, slots(ranks), self);
                             })
      .def_property_readonly("by_score",
                             [slots](py::object self) {
                               const auto& by_score = self.cast<const Held&>().matches.by_score;
                               return view(by_score, slots(by_score), self);
                             })
      .def_property_readonly("offsets",
                             [slots](py::object self) {
                               const auto& offsets = self.cast<const Held&>().matches.offsets;
                               return view(offsets, slots(offsets), self);
                             })
      .def_property_readonly("kinds",
                             [planes](py::object self) {
                               const auto& held = self.cast<const Held&>();
                               return view(held.matches.kinds, planes(held), self);
                             })
      .def_property_readonly("targets", [planes](py::object self) -> std::optional<py::array> {
        const auto& held = self.cast<const Held&>();
        if (!held.rules.targets) return std::nullopt;
        return view(held.matches.targets, planes(held), self);
      });
  using py::arg;
  m.def("match", &match_arrays, py::kw_only(), arg("object_cells").noconvert(),
        arg("object_boxes").noconvert(), arg("object_areas").noconvert(),
        arg("ignored").noconvert(), arg("region").noconvert(), arg("unfindable").noconvert(),
        arg("cells").noconvert(), arg("boxes").noconvert(), arg("scores").noconvert(),
        arg("outside").noconvert(), arg("classes"), arg("images"), arg("thresholds"), arg("absorb"),
        arg("drop_outside"), arg("most"), arg("targets"), arg("threads"),
        "Matches detections with objects, cell by cell; see csrc/eval/match.h.");
  m.def("accumulate", &accumulate_arrays, arg("matches"), py::kw_only(),
        arg("positives").noconvert(), arg("limits"), arg("points"), arg("threads"),
        "Interpolated precision and largest recall; see csrc/eval/match.h.");
}
