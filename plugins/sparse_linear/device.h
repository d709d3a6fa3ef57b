// CUDA's memory, streams, events and graphs, each given back by its destructor.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace sparseflow::cuda {

class Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(cudaError_t code, char const* what) {
  if (code != cudaSuccess) {
    throw Error(std::string(what) + " failed: " + cudaGetErrorString(code));
  }
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

// This thread's GPU's T: what make(device) gives, as long as somebody holds it.
template <typename T, typename Make>
std::shared_ptr<T> one_for_each_gpu(Make const& make) {
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<T>> all;
  auto const device = current_device();
  std::lock_guard<std::mutex> const lock(mutex);
  auto held = all[device].lock();
  if (!held) {
    held = make(device);
    all[device] = held;
  }
  return held;
}

template <auto give_back>
struct GiveBack {
  template <typename T>
  void operator()(T* held) const {
    give_back(held);
  }
};

using Memory = std::unique_ptr<void, GiveBack<cudaFree>>;
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, GiveBack<cudaStreamDestroy>>;
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, GiveBack<cudaEventDestroy>>;
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, GiveBack<cudaGraphDestroy>>;
using GraphExec = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, GiveBack<cudaGraphExecDestroy>>;

inline Memory allocate(size_t bytes) {
  void* memory = nullptr;
  if (bytes != 0) {
    check(cudaMalloc(&memory, bytes), "cudaMalloc");
  }
  return Memory(memory);
}

// One that does not wait for the default stream.
inline Stream new_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return Stream(stream);
}

inline Event new_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "cudaEventCreate");
  return Event(event);
}

}  // namespace sparseflow::cuda
