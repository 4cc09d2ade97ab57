#include "core/hmm_problem.h"

#include "gpu/device.h"
