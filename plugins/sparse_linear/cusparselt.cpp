#include "cusparselt.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <cstdlib>
#include <map>
#include <mutex>

#include "device.h"

namespace sparseflow::lt {
namespace {

constexpr char const* kVariable = "SPARSEFLOW_CUSPARSELT";
constexpr char const* kSoname = "libcusparseLt.so.0";
constexpr int kOldest = 801;  // on an H200 the search of 0.8.0 ends, for FP16, in an illegal instruction

std::string in_words(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 100) + "." +
         std::to_string(version % 100);
}

std::string where() {
  auto const* given = std::getenv(kVariable);
  if (given == nullptr || *given == '\0') {
    return kSoname;
  }
  struct stat about {};
  std::string path = given;
  if (stat(given, &about) == 0 && S_ISDIR(about.st_mode)) {
    path += std::string("/") + kSoname;
  }
  return path;
}

template <typename Function>
void find(void* library, char const* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) {
    throw Error("cuSPARSELt at " + where() + " has no " + name + ": it is older than " + in_words(kOldest) +
                "; install nvidia-cusparselt-cu12 or -cu13, 0.8.1 or later, and name it in " + kVariable);
  }
}

int version_of(Api const& api) {
  int numbers[3] = {};
  libraryPropertyType const parts[3] = {MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL};
  for (int i = 0; i < 3; ++i) {
    if (api.get_property(parts[i], &numbers[i]) != 0) {
      throw Error("cuSPARSELt at " + where() + " does not say its version");
    }
  }
  return numbers[0] * 1000 + numbers[1] * 100 + numbers[2];
}

Api load() {
  // It stays loaded: what it registers with CUDA does not survive being unloaded.
  void* const library = dlopen(where().c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    auto const* why = dlerror();
    throw Error(std::string("cuSPARSELt does not load (") + (why ? why : "no reason given") +
                "): install nvidia-cusparselt-cu12 or -cu13, 0.8.1 or later, and name the library or its folder in " +
                kVariable);
  }
  Api api{};
  find(library, "cusparseLtInit", api.init);
  find(library, "cusparseLtDestroy", api.destroy);
  find(library, "cusparseLtGetProperty", api.get_property);
  find(library, "cusparseLtGetErrorString", api.error_string);
  find(library, "cusparseLtDenseDescriptorInit", api.dense);
  find(library, "cusparseLtStructuredDescriptorInit", api.structured);
  find(library, "cusparseLtMatDescriptorDestroy", api.matrix_destroy);
  find(library, "cusparseLtMatmulDescriptorInit", api.matmul_init);
  find(library, "cusparseLtMatmulDescSetAttribute", api.matmul_set);
  find(library, "cusparseLtMatmulAlgSelectionInit", api.selection_init);
  find(library, "cusparseLtMatmulAlgSelectionDestroy", api.selection_destroy);
  find(library, "cusparseLtMatmulAlgSetAttribute", api.selection_set);
  find(library, "cusparseLtMatmulAlgGetAttribute", api.selection_get);
  find(library, "cusparseLtMatmulGetWorkspace", api.workspace);
  find(library, "cusparseLtMatmulPlanInit", api.plan_init);
  find(library, "cusparseLtMatmulPlanDestroy", api.plan_destroy);
  find(library, "cusparseLtMatmul", api.matmul);
  find(library, "cusparseLtMatmulSearch", api.search);
  find(library, "cusparseLtSpMMACompressedSize2", api.compressed_size);
  find(library, "cusparseLtSpMMACompress2", api.compress);
  if (auto const version = version_of(api); version < kOldest) {
    throw Error("cuSPARSELt at " + where() + " is " + in_words(version) + "; this plugin needs " + in_words(kOldest) +
                " or later");
  }
  return api;
}

// Loaded once; where that fails, tried anew by the next call.
Api const& api() {
  static Api const loaded = load();
  return loaded;
}

}  // namespace

Session::Session(int device) : api_(&lt::api()), device_(device), version_(version_of(*api_)), handle_{} {
  check(api_->init(&handle_), "cusparseLtInit");
}

Session::~Session() { api_->destroy(&handle_); }

void Session::check(Status status, char const* what) const {
  if (status != 0) {
    throw Error(std::string(what) + " failed: " + api_->error_string(status));
  }
}

std::shared_ptr<Session> session() {
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<Session>> sessions;
  auto const device = cuda::current_device();
  std::lock_guard<std::mutex> const lock(mutex);
  auto session = sessions[device].lock();
  if (!session) {
    session = std::make_shared<Session>(device);
    sessions[device] = session;
  }
  return session;
}

}  // namespace sparseflow::lt
