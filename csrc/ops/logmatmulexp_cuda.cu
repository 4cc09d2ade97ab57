#include "ops/logmatmulexp.h"

#include "gpu/device.h"
