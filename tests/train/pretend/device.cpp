// A pretend accelerator: a PrivateUse1 device whose memory is the host's and whose kernels are the
// processor's, and a collective library for it, which is Gloo on views that share memory.
//
// It lets tests run the code path of a device that is neither a CPU nor CUDA.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/extension.h>

#include <vector>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;

constexpr DeviceType kPretend = DeviceType::PrivateUse1;
constexpr DeviceIndex kDevices = 2;
thread_local DeviceIndex current = 0;

// Streams and events do nothing: every operation is done when it returns.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr DeviceType static_type = kPretend;
  DeviceType type() const override { return kPretend; }
  Device exchangeDevice(Device d) const override {
    Device before(kPretend, current);
    current = d.index();
    return before;
  }
  Device getDevice() const override { return Device(kPretend, current); }
  void setDevice(Device d) const override { current = d.index(); }
  void uncheckedSetDevice(Device d) const noexcept override { current = d.index(); }
  c10::Stream getStream(Device d) const override {
    return c10::Stream(c10::Stream::DEFAULT, Device(kPretend, d.index() < 0 ? current : d.index()));
  }
  c10::Stream getDefaultStream(Device d) const override { return getStream(d); }
  c10::Stream getNewStream(Device d, int) const override { return getStream(d); }
  c10::Stream getStreamFromGlobalPool(Device d, bool) const override { return getStream(d); }
  c10::Stream exchangeStream(c10::Stream s) const override { return s; }
  DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void record(void** event, const c10::Stream&, DeviceIndex, c10::EventFlag) const override {
    if (!*event) *event = reinterpret_cast<void*>(1);
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, DeviceIndex) const noexcept override {}
  void synchronizeEvent(void*) const override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Allocator final : c10::DeviceAllocator {
  static void release(void* p) { free(p); }
  c10::DataPtr allocate(size_t bytes) override {
    void* p = nullptr;
    if (bytes && posix_memalign(&p, 64, bytes)) throw std::bad_alloc();
    return {p, p, &release, Device(kPretend, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex) override { return {}; }
  void resetAccumulatedStats(DeviceIndex) override {}
  void resetPeakStats(DeviceIndex) override {}
};
Allocator allocator;
REGISTER_ALLOCATOR(kPretend, &allocator);

struct Hooks : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return kDevices; }
  void setCurrentDevice(DeviceIndex d) const override { current = d; }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex exchangeDevice(DeviceIndex d) const override { return std::exchange(current, d); }
  DeviceIndex maybeExchangeDevice(DeviceIndex d) const override {
    return d < 0 ? current : std::exchange(current, d);
  }
  void init() const override {}
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    static at::Generator generator = at::make_generator<at::CPUGeneratorImpl>();
    return generator;
  }
  at::Generator getNewGenerator(DeviceIndex) const override {
    return at::make_generator<at::CPUGeneratorImpl>();
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    auto data = allocator.allocate(bytes);
    if (impl->nbytes()) memcpy(data.get(), impl->data(), std::min(bytes, impl->nbytes()));
    impl->set_data_ptr_noswap(std::move(data));
    impl->set_nbytes(bytes);
  }
};

// The same memory, seen as a CPU tensor.
Tensor on_host(const Tensor& t) {
  if (!t.defined() || t.device().type() != kPretend) return t;
  c10::Storage storage = t.storage();
  bool any = t.numel() || storage.nbytes();
  char* data = any ? static_cast<char*>(storage.mutable_data()) : nullptr;
  if (data) data += t.storage_offset() * t.element_size();
  auto keep = [storage](void*) {};
  return at::from_blob(data, t.sizes(), t.strides(), keep, t.options().device(c10::kCPU));
}

struct OnDevice {
  DeviceIndex before = current;
  explicit OnDevice(std::optional<Device> d) {
    if (d && d->has_index()) current = d->index();
  }
  ~OnDevice() { current = before; }
};

using MaybeType = std::optional<at::ScalarType>;
using MaybeLayout = std::optional<at::Layout>;
using MaybeDevice = std::optional<Device>;
const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

Tensor empty(c10::SymIntArrayRef size, MaybeType type, MaybeLayout, MaybeDevice device,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  OnDevice guard(device);
  auto shape = C10_AS_INTARRAYREF_SLOW(size);
  return at::detail::empty_generic(shape, &allocator, kKeys, c10::dtype_or_default(type), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, MaybeType type,
                     MaybeLayout, MaybeDevice device, std::optional<bool>) {
  OnDevice guard(device);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size),
                                           C10_AS_INTARRAYREF_SLOW(stride), &allocator, kKeys,
                                           c10::dtype_or_default(type));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_host(to).copy_(on_host(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const Tensor& t) { return on_host(t).item(); }

Tensor as_strided(const Tensor& t, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                  std::optional<c10::SymInt> offset) {
  std::optional<int64_t> at_element;
  if (offset) at_element = offset->expect_int();
  return at::native::as_strided_tensorimpl(t, C10_AS_INTARRAYREF_SLOW(size),
                                           C10_AS_INTARRAYREF_SLOW(stride), at_element);
}

Tensor view(const Tensor& t, c10::SymIntArrayRef size) {
  return at::native::view(t, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor reshape_alias(const Tensor& t, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return as_strided(t, size, stride, std::nullopt);
}

const Tensor& resize(const Tensor& t, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  auto* impl = t.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  size_t need = (impl->numel() + impl->storage_offset()) * t.element_size();
  if (t.storage().nbytes() < need) Hooks().resizePrivateUse1Bytes(t.storage(), need);
  return t;
}

Tensor& set_storage(Tensor& t, c10::Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
                    c10::SymIntArrayRef stride) {
  auto* impl = t.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                              offset.expect_int());
  return t;
}

void on_processor(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_processor>());
}
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage_storage_offset", set_storage);
}

using Work = c10::intrusive_ptr<c10d::Work>;
using Tensors = std::vector<Tensor>;

Tensors on_host(const Tensors& all) {
  Tensors out;
  for (const auto& t : all) out.push_back(on_host(t));
  return out;
}

std::vector<Tensors> on_host(const std::vector<Tensors>& all) {
  std::vector<Tensors> out;
  for (const auto& t : all) out.push_back(on_host(t));
  return out;
}

struct Collectives : c10d::Backend {
  c10::intrusive_ptr<c10d::Backend> gloo;
  Collectives(c10::intrusive_ptr<c10d::Backend> inner, int rank, int size)
      : c10d::Backend(rank, size), gloo(std::move(inner)) {}
  const std::string getBackendName() const override { return "pretendccl"; }
  bool supportsSplitting() const override { return false; }

  Work broadcast(Tensors& t, const c10d::BroadcastOptions& o) override {
    auto a = on_host(t);
    return gloo->broadcast(a, o);
  }
  Work allreduce(Tensors& t, const c10d::AllreduceOptions& o) override {
    auto a = on_host(t);
    return gloo->allreduce(a, o);
  }
  Work allgather(std::vector<Tensors>& to, Tensors& from, const c10d::AllgatherOptions& o) override {
    auto a = on_host(to);
    auto b = on_host(from);
    return gloo->allgather(a, b, o);
  }
  Work _allgather_base(Tensor& to, Tensor& from, const c10d::AllgatherOptions& o) override {
    auto a = on_host(to), b = on_host(from);
    return gloo->_allgather_base(a, b, o);
  }
  Work _reduce_scatter_base(Tensor& to, Tensor& from,
                            const c10d::ReduceScatterOptions& o) override {
    auto a = on_host(to), b = on_host(from);
    return gloo->_reduce_scatter_base(a, b, o);
  }
  Work allreduce_coalesced(Tensors& t, const c10d::AllreduceCoalescedOptions& o) override {
    auto a = on_host(t);
    return gloo->allreduce_coalesced(a, o);
  }
  Work allgather_into_tensor_coalesced(Tensors& to, Tensors& from,
                                       const c10d::AllgatherOptions& o) override {
    auto a = on_host(to), b = on_host(from);
    return gloo->allgather_into_tensor_coalesced(a, b, o);
  }
  Work reduce_scatter_tensor_coalesced(Tensors& to, Tensors& from,
                                       const c10d::ReduceScatterOptions& o) override {
    auto a = on_host(to), b = on_host(from);
    return gloo->reduce_scatter_tensor_coalesced(a, b, o);
  }
  Work alltoall_base(Tensor& to, Tensor& from, std::vector<int64_t>& received,
                     std::vector<int64_t>& sent, const c10d::AllToAllOptions& o) override {
    auto a = on_host(to), b = on_host(from);
    return gloo->alltoall_base(a, b, received, sent, o);
  }
  Work send(Tensors& t, int to, int tag) override {
    auto a = on_host(t);
    return gloo->send(a, to, tag);
  }
  Work recv(Tensors& t, int from, int tag) override {
    auto a = on_host(t);
    return gloo->recv(a, from, tag);
  }
  Work barrier(const c10d::BarrierOptions&) override { return gloo->barrier({}); }
};

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  py::object base = py::module_::import("torch._C._distributed_c10d").attr("Backend");
  py::class_<Collectives, c10::intrusive_ptr<Collectives>>(m, "Collectives", base)
      .def(py::init([](c10::intrusive_ptr<c10d::Backend> inner, int rank, int size) {
        return c10::make_intrusive<Collectives>(std::move(inner), rank, size);
      }));
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  m.def("device_count", [] { return static_cast<int>(kDevices); });
  m.def("current_device", [] { return static_cast<int>(current); });
  m.def("set_device", [](int index) { current = static_cast<DeviceIndex>(index); });
}
