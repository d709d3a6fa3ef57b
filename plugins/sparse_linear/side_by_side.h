// Work on several threads at once.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

#include "device.h"

namespace sparseflow {

constexpr size_t kMostThreads = 16;

// Calls work(i) for each i in [0, count), on as many threads as there are cores, or as can be started; this thread is
// one of them. `work` throws nothing. Throws cuda::Error where the GPU cannot be made this thread's.
template <typename Thread = std::thread, typename Work>
void side_by_side(size_t count, int device, Work const& work) {
  cuda::check(cudaSetDevice(device), "cudaSetDevice");  // before there are threads that would have to be joined
  std::atomic<size_t> next{0};
  auto const run = [&] {
    for (size_t i = next++; i < count; i = next++) {
      work(i);
    }
  };
  auto const cores = std::max<size_t>(Thread::hardware_concurrency(), 1);
  auto const wanted = std::min({count, cores, kMostThreads});
  std::vector<Thread> threads;
  threads.reserve(wanted);
  try {
    while (threads.size() + 1 < wanted) {
      threads.emplace_back([&] {
        if (cudaSetDevice(device) == cudaSuccess) {  // a thread has a current GPU of its own; else others do its part
          run();
        }
      });
    }
  } catch (std::exception const&) {  // the process may have no more threads: those that it has do all
  }
  run();
  for (auto& thread : threads) {
    thread.join();
  }
}

}  // namespace sparseflow
