#include "cuda_runtime_api.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

struct Work {
  float microseconds;
  std::function<void()> run;
};

struct CUstream_st {
  bool capturing = false;
  bool broken = false;
  float clock = 0;
  std::vector<Work> recorded;
};
struct CUevent_st {
  float at = 0;
};
struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::vector<Work> work;
};

namespace {

std::atomic<int> alive{0};
thread_local bool forbidden = false;
thread_local int broken_rules = 0;
thread_local CUstream_st* captured = nullptr;
thread_local int copied = 0;
std::string gpu = "Fake";
int cache = 1 << 12;

void rule() {
  broken_rules += forbidden ? 1 : 0;
  if (captured != nullptr) {
    captured->broken = true;
  }
}

template <typename T>
cudaError_t make(T** made) {
  *made = new T;
  ++alive;
  return cudaSuccess;
}

template <typename T>
cudaError_t give_back(T* held) {
  delete held;
  --alive;
  return cudaSuccess;
}

}  // namespace

namespace fake {

void submit(cudaStream_t stream, float microseconds, std::function<void()> work) {
  if (stream->capturing) {
    stream->recorded.push_back({microseconds, std::move(work)});
  } else {
    work();
    stream->clock += microseconds;
  }
}

void forbid() {
  forbidden = true;
  broken_rules = 0;
}

int allow() {
  forbidden = false;
  return broken_rules;
}

int live() { return alive; }

void count(int change) { alive += change; }

void name_gpu(char const* name) { gpu = name; }

void set_cache(int bytes) { cache = bytes; }

int copies() { return std::exchange(copied, 0); }

}  // namespace fake

extern "C" {

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  rule();
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*memory, 0xAB, bytes);
  ++alive;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  rule();
  std::free(memory);
  --alive;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int) { return cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  gpu.copy(properties->name, sizeof properties->name - 1);
  properties->major = 9;
  properties->multiProcessorCount = 132;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = cache;
  return cudaSuccess;
}

char const* cudaGetErrorString(cudaError_t) { return "an error of the fake"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  rule();
  return make(stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  rule();
  return give_back(stream);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  rule();
  return stream->capturing ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->capturing = true;
  stream->broken = false;
  captured = stream;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  stream->capturing = false;
  captured = nullptr;
  auto work = std::move(stream->recorded);
  stream->recorded.clear();
  if (stream->broken) {
    return cudaErrorStreamCaptureInvalidated;
  }
  make(graph);
  (*graph)->work = std::move(work);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  make(made);
  (*made)->work = graph->work;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  for (auto const& work : graph->work) {
    fake::submit(stream, work.microseconds, work.run);
  }
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return give_back(graph); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return give_back(graph); }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return make(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return give_back(event); }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->at = stream->clock;
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t) {
  rule();
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = (end->at - begin->at) / 1000;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, void const* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  ++copied;
  fake::submit(stream, 1, [=] { std::memcpy(to, from, bytes); });
  return bytes == 0 && stream->capturing ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  fake::submit(stream, 1, [=] { std::memset(to, value, bytes); });
  return bytes == 0 && stream->capturing ? cudaErrorInvalidValue : cudaSuccess;
}
}
