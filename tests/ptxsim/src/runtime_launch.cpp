// CUDA runtime API: registration of compiled code, launches, function attributes.
#include <signal.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "fatbin.h"
#include "machine.h"
#include "options.h"
#include "ptxsim.h"
#include "runtime.h"

namespace ptxsim {

Runtime& runtime() {
  static Runtime* r = new Runtime;
  return *r;
}

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) runtime().last = error;
  return error;
}

uint8_t* variable_address(const void* symbol) {
  auto it = runtime().variables.find(symbol);
  if (it == runtime().variables.end() || !it->second.binary->module) return nullptr;
  return it->second.binary->module->variable(it->second.name);
}

}  // namespace ptxsim

using namespace ptxsim;

namespace {

// A host fault inside a kernel: report the instruction before dying.
void on_fault(int signal, siginfo_t* info, void*) {
  if (Warp* w = executing_warp())
    std::fprintf(stderr, "ptxsim: fault at address %p\n  %s\n", info->si_addr, w->where().c_str());
  ::signal(signal, SIG_DFL);
  raise(signal);
}
class FaultReporter {
 public:
  FaultReporter() {
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, &saved_);
  }
  ~FaultReporter() { sigaction(SIGSEGV, &saved_, nullptr); }

 private:
  struct sigaction saved_;
};

Dim3 to_dim3(dim3 d) { return {d.x, d.y, d.z}; }

cudaError_t launch_kernel(const void* key, dim3 grid, dim3 block, void** arguments, size_t shared,
                          dim3 cluster) {
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return result(r.sticky);
  auto it = r.functions.find(key);
  if (it == r.functions.end() || !it->second.binary->module)
    return result(cudaErrorInvalidDeviceFunction);
  HostFunction& host = it->second;
  try {
    Function* f = host.binary->module->function(host.name);
    if (!f) return result(cudaErrorInvalidDeviceFunction);
    LaunchConfig config{to_dim3(grid), to_dim3(block), to_dim3(cluster),
                        static_cast<uint32_t>(shared)};
    if (const unsigned* fixed = f->decl->cluster_shape; fixed[0])
      config.cluster = {fixed[0], fixed[1], fixed[2]};
    if (config.grid.volume() == 0 || config.block.volume() == 0 || config.block.volume() > 1024 ||
        (f->decl->max_threads && config.block.volume() > f->decl->max_threads) ||
        static_cast<int>(shared) > host.max_dynamic_shared ||
        f->static_shared + shared > static_cast<size_t>(shared_limit()) ||
        config.grid.x % config.cluster.x || config.grid.y % config.cluster.y ||
        config.grid.z % config.cluster.z)
      return result(cudaErrorInvalidConfiguration);
    for (size_t i = 0; i < f->decl->params.size(); ++i)
      std::memcpy(f->param_buffer() + f->param_offset[i], arguments[i], f->decl->params[i].bytes);
    FaultReporter reporter;
    launch(*f, config);
    return cudaSuccess;
  } catch (const SimError& error) {
    std::fprintf(stderr, "ptxsim: %s\n", error.what());
    r.report = error.what();
    if (options().abort_on_error) std::abort();
    return result(r.sticky = cudaErrorLaunchFailure);
  }
}

}  // namespace

extern "C" {

// --- registration

void** __cudaRegisterFatBinary(void* wrapper) {
  auto* binary = new LoadedBinary;
  try {
    std::string ptx = extract_ptx(wrapper);
    if (!ptx.empty()) binary->module = std::make_unique<Module>(std::move(ptx));
    else std::fprintf(stderr, "ptxsim: a fat binary holds no PTX: its kernels cannot run\n");
  } catch (const SimError& error) {
    std::fprintf(stderr, "ptxsim: %s\n", error.what());
  }
  return reinterpret_cast<void**>(binary);
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  runtime().functions[host] = {reinterpret_cast<LoadedBinary*>(handle), name};
}
void __cudaRegisterVar(void** handle, char* host, char*, const char* name, int, size_t, int, int) {
  runtime().variables[host] = {reinterpret_cast<LoadedBinary*>(handle), name};
}
void __cudaRegisterManagedVar(void** handle, void** host, char*, const char* name, int, size_t, int,
                              int) {
  runtime().variables[host] = {reinterpret_cast<LoadedBinary*>(handle), name};
  *host = variable_address(host);
}

// --- launches

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  runtime().configurations.push_back({grid, block, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  auto& stack = runtime().configurations;
  if (stack.empty()) return result(cudaErrorMissingConfiguration);
  auto c = stack.back();
  stack.pop_back();
  *grid = c.grid, *block = c.block, *shared = c.shared,
  *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* f, dim3 grid, dim3 block, void** args, size_t shared,
                             cudaStream_t) {
  return launch_kernel(f, grid, block, args, shared, dim3(1, 1, 1));
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* f) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(f));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** args,
                               size_t shared, cudaStream_t) {
  return launch_kernel(kernel, grid, block, args, shared, dim3(1, 1, 1));
}
cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t kernel, dim3 grid, dim3 block, void** args,
                                    size_t shared, cudaStream_t) {
  return launch_kernel(kernel, grid, block, args, shared, dim3(1, 1, 1));
}
cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 grid, dim3 block, void** args,
                                        size_t shared, cudaStream_t) {
  // CTAs run one after another: a grid-wide barrier could not complete.
  if (grid.x * grid.y * grid.z > 1) return result(cudaErrorNotSupported);
  return launch_kernel(f, grid, block, args, shared, dim3(1, 1, 1));
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* f, void** args) {
  dim3 cluster(1, 1, 1);
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& a = config->attrs[i];
    if (a.id == cudaLaunchAttributeClusterDimension)
      cluster = dim3(a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z);
  }
  return launch_kernel(f, config->gridDim, config->blockDim, args, config->dynamicSmemBytes,
                       cluster);
}

cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute attr, int value) {
  auto it = runtime().functions.find(f);
  if (it == runtime().functions.end()) return result(cudaErrorInvalidDeviceFunction);
  if (attr == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > shared_limit()) return result(cudaErrorInvalidValue);
    it->second.max_dynamic_shared = value;
  }
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* f) {
  auto it = runtime().functions.find(f);
  if (it == runtime().functions.end() || !it->second.binary->module)
    return result(cudaErrorInvalidDeviceFunction);
  std::memset(attributes, 0, sizeof *attributes);
  try {
    Function* function = it->second.binary->module->function(it->second.name);
    if (!function) return result(cudaErrorInvalidDeviceFunction);
    attributes->sharedSizeBytes = function->static_shared;
    attributes->localSizeBytes = function->local_bytes;
    attributes->maxThreadsPerBlock =
        function->decl->max_threads ? static_cast<int>(function->decl->max_threads) : 1024;
  } catch (const SimError& error) {
    std::fprintf(stderr, "ptxsim: %s\n", error.what());
    return result(cudaErrorInvalidPtx);
  }
  attributes->numRegs = 128;
  attributes->ptxVersion = attributes->binaryVersion = options().capability;
  attributes->maxDynamicSharedSizeBytes = it->second.max_dynamic_shared;
  return cudaSuccess;
}
cudaError_t cudaFuncSetCacheConfig(const void*, cudaFuncCache) { return cudaSuccess; }

// --- the simulator's own interface

const char* ptxsim_kernel_names() {
  std::set<std::string> names;  // a kernel may be in several binaries
  for (const auto& [key, function] : runtime().functions)
    names.insert(readable_name(function.name));
  static std::string text;
  text.clear();
  for (const auto& name : names) text += name + '\n';
  return text.c_str();
}

const char* ptxsim_last_report() { return runtime().report.c_str(); }

const char* ptxsim_stats_json() {
  static std::string text;
  text = stats_json();
  return text.c_str();
}
void ptxsim_reset_stats() { reset_stats(); }

}  // extern "C"
