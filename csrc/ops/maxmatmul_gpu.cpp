#include "ops/maxmatmul.h"

#include "ops/gpu_call.h"
#include "ops/registration.h"
