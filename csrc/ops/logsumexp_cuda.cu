#include "ops/logsumexp.h"

#include "gpu/device.h"
