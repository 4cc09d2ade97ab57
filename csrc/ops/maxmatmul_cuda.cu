#include "ops/maxmatmul.h"

#include "gpu/device.h"
