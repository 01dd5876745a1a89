#include "cuda/api/weight_maps.h"

#include <cuda.h>

#include <cstring>

#include "core/error.h"
#include "cuda/api/driver.h"

namespace molae::cuda {

WeightMap encode_weight_map(const hopper::WeightMapArguments& arguments) {
  static const auto encode =
      reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(driver_function("cuTensorMapEncodeTiled"));
  static_assert(sizeof(WeightMap) == sizeof(CUtensorMap) && alignof(WeightMap) >= alignof(CUtensorMap));
  const CUtensorMapDataType type =
      arguments.dtype == DType::BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint64_t sizes[] = {arguments.sizes[0], arguments.sizes[1]};
  const cuuint64_t strides[] = {arguments.row_stride};
  CUtensorMap map{};
  const CUresult result = encode(&map, type, 2, const_cast<void*>(arguments.address), sizes, strides, arguments.box,
                                 arguments.element_steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    fail(ErrorCode::Internal, "The driver refused a tensor map of ", sizes[1], " rows of ", sizes[0], " at ",
         arguments.address, ": error ", static_cast<int>(result));
  }
  WeightMap encoded;
  std::memcpy(&encoded, &map, sizeof encoded);
  return encoded;
}

}  // namespace molae::cuda
