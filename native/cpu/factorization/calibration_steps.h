#pragma once

#include <memory>

#include "core/calibration_steps.h"
#include "cpu/context.h"

namespace molae::cpu {

std::unique_ptr<CalibrationSteps> make_calibration_steps(Context context);

}  // namespace molae::cpu
