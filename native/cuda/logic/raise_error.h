#pragma once

#include "core/error.h"
#include "cuda/logic/error_record.h"

namespace molae::cuda {

// Throws what a kernel left a record of.
[[noreturn]] inline void raise(const DecodedError& error) {
  switch (error.kind) {
    case InputError::ExpertOutOfRange:
      fail(ErrorCode::InvalidArgument, "Routing sends token ", error.token, " to expert ", error.expert,
           ", which the layer does not have (seen after the call that was given it)");
    case InputError::ExpertTwice:
      fail(ErrorCode::InvalidArgument, "Routing sends token ", error.token, " to expert ", error.expert,
           " twice (seen after the call that was given it)");
    case InputError::BiasNotFinite:
      fail(ErrorCode::NonFinite, "correctionBias has NaN or infinity at ", error.expert, " (token ", error.token,
           "; seen after the call that was given it)");
    case InputError::TokenOutOfRange:
      fail(ErrorCode::InvalidArgument, "Token id ", error.expert, " at ", error.token,
           " is outside of the table (seen after the call that was given it)");
    case InputError::TargetOutOfRange:
      fail(ErrorCode::InvalidArgument, "Target ", error.expert, " at ", error.token,
           " is outside of the logits (seen after the call that was given it)");
    case InputError::RowNotFinite:
      fail(ErrorCode::NonFinite, "The logits of row ", error.token,
           " have NaN or infinity (seen after the call that was given them)");
    default:
      fail(ErrorCode::NonFinite, "The router logits of token ", error.token,
           " have NaN or infinity (seen after the call that was given them)");
  }
}

}  // namespace molae::cuda
