#include "ops/normalize_weights.h"

#include "gpu/device.h"
