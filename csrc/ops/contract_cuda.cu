#include "core/contraction.h"

#include "gpu/device.h"
