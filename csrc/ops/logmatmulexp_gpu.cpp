#include "ops/logmatmulexp.h"

#include "ops/gpu_call.h"
#include "ops/registration.h"
