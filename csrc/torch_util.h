// Between torch::stable::Tensor and plain pointers. Only the stable ABI: one binary, torch >= 2.11.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "common.h"

static_assert(TORCH_FEATURE_VERSION == TORCH_VERSION_2_11_0,
              "compile with -DTORCH_TARGET_VERSION=0x020b000000000000");

namespace tinyops {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Throws std::runtime_error, the one type whose message crosses the stable ABI. Call it before any
// aten call and outside parallel loops: from there the message is lost.
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) [[likely]]
    return;
  std::ostringstream message;
  message << "tinyops: ";
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

// Formatted only when a message is written, so that a check that holds costs nothing.
struct ShapeText {
  const Tensor& tensor;
  friend std::ostream& operator<<(std::ostream& s, const ShapeText& shape) {
    s << '[';
    for (int64_t d = 0; d < shape.tensor.dim(); ++d) s << (d ? ", " : "") << shape.tensor.size(d);
    return s << ']';
  }
};
inline ShapeText shape_text(const Tensor& t) {
  return {t};
}

struct DeviceText {
  const Tensor& tensor;
  friend std::ostream& operator<<(std::ostream& s, const DeviceText& text) {
    const auto device = text.tensor.device();
    if (device.is_cpu()) return s << "cpu";
    if (device.is_cuda()) return s << "cuda:" << device.index();
    return s << "device type " << static_cast<int>(device.type()) << ':' << device.index();
  }
};
inline DeviceText device_text(const Tensor& t) {
  return {t};
}

// torch spells dtypes in lower case; ScalarType does not.
inline const char* dtype_text(ScalarType t) {
  switch (t) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Short: return "int16";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Bool: return "bool";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return torch::headeronly::toString(t);
  }
}

inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4) return false;
  int64_t expected = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (t.size(d) == 1) continue;
    if (t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// The layout rule of every feature operator: NHWC stays NHWC, anything else becomes contiguous.
// `layout_of` in tinyops/ops/_glue.py says the same to the fake kernels.
inline MemoryFormat layout_of(const Tensor& t) {
  return !t.is_contiguous() && is_channels_last(t) ? MemoryFormat::ChannelsLast
                                                   : MemoryFormat::Contiguous;
}
inline bool has_layout(const Tensor& t, MemoryFormat format) {
  return format == MemoryFormat::ChannelsLast ? is_channels_last(t) : t.is_contiguous();
}
inline Tensor to_layout(const Tensor& t, MemoryFormat format) {
  return has_layout(t, format) ? t : torch::stable::contiguous(t, format);
}
inline OptionalTensor to_layout(const OptionalTensor& t, MemoryFormat format) {
  return t ? OptionalTensor(to_layout(*t, format)) : std::nullopt;
}

inline Tensor empty_like_sized(const Tensor& like, std::initializer_list<int64_t> size,
                               MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty({size.begin(), size.size()}, like.scalar_type(), std::nullopt,
                              like.device(), std::nullopt, format);
}

inline Tensor empty_on(const Tensor& like, ScalarType dtype, std::initializer_list<int64_t> size) {
  return torch::stable::empty({size.begin(), size.size()}, dtype, std::nullopt, like.device());
}

// [n] int64 on the CPU. By the shim itself: torch::stable::empty looks its operator up by name,
// which costs more than all the rest of a call with a few boxes.
inline Tensor empty_indices(int64_t n) {
  const int64_t stride = 1;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &n, &stride, aoti_torch_dtype_int64(),
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
const T* data(const OptionalTensor& t) {
  return t ? data<T>(*t) : nullptr;
}
template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Calls f with a zero of the tensor's type, Half and BFloat16 being those of the backend.
template <typename Half, typename BFloat16, typename F>
void for_float_dtype(ScalarType t, F&& f) {
  switch (t) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::Half: return f(Half{});
    case ScalarType::BFloat16: return f(BFloat16{});
    default: check(false, "unreachable: dtype ", dtype_text(t), " was not checked");
  }
}
inline bool is_float_dtype(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::Half ||
         t == ScalarType::BFloat16;
}

}  // namespace tinyops
