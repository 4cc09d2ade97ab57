#include "core/contraction.h"

#include "ops/gpu_call.h"
#include "ops/registration.h"
