#include "ops/normalize_weights.h"

#include "ops/gpu_call.h"
#include "ops/registration.h"
