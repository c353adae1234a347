// The simulator's own functions, beside the CUDA runtime API. The environment variables that set
// its options are in options.h.
#pragma once
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Reads the environment variables again.
void ptxsim_reload_options(void);

// Declares host memory that kernels may use; accesses outside of all declared and allocated memory
// are errors from then on.
void ptxsim_register_range(void* begin, size_t bytes);
void ptxsim_unregister_range(void* begin);

// What the last failed launch reported.
const char* ptxsim_last_report(void);

// The counters of each kernel since the last reset as a JSON array, with PTXSIM_STATS; the text is
// valid until the next call.
const char* ptxsim_stats_json(void);
void ptxsim_reset_stats(void);

#ifdef __cplusplus
}
#endif
