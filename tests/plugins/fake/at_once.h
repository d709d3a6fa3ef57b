#pragma once

#include <exception>
#include <string>
#include <thread>
#include <vector>

// Runs work(seed) in `count` threads at once, for seeds from 0 on; what each that failed says, "" for the others.
template <typename Work>
std::vector<std::string> at_once(unsigned count, Work const& work) {
  std::vector<std::thread> threads;
  std::vector<std::string> failures(count);
  for (unsigned seed = 0; seed < count; ++seed) {
    threads.emplace_back([&, seed] {
      try {
        work(seed);
      } catch (std::exception const& error) {
        failures[seed] = error.what();
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  return failures;
}
