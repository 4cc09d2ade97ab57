#include "core/hmm_problem.h"

#include "ops/gpu_call.h"
#include "ops/registration.h"
