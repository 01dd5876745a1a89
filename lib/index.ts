export { Checkpoint, openCheckpoint } from './checkpoint/checkpoint.ts';
export type { ModelConfig } from './checkpoint/config.ts';
export type {
  Attention,
  AttentionSizes,
  DecoderSpec,
  GroupedQueryAttention,
  LatentAttention,
  Rotary,
  RotaryScaling,
} from './checkpoint/decoder-spec.ts';
export type { ExpertSlice, Family, MoeSpec, SharedExpertTensors } from './checkpoint/family.ts';
export { type Inspection, inspectCheckpoint } from './checkpoint/inspect.ts';
export type { JsonObject } from './checkpoint/json.ts';
export type { LatentFactor, MolaeBlock } from './checkpoint/latent-format.ts';
export type { LatentGroup, MoeLayer } from './checkpoint/layers.ts';
export type { LoadOptions } from './checkpoint/load-experts.ts';
export type { SafetensorsDtype } from './checkpoint/safetensors/dtype.ts';
export type { TensorEntry } from './checkpoint/safetensors/header.ts';
export { SafetensorsFile } from './checkpoint/safetensors/reader.ts';
export { SafetensorsWriter, type TensorDeclaration } from './checkpoint/safetensors/writer.ts';
export type { ShardedTensor, Shards } from './checkpoint/shards.ts';
export type { TensorPiece, Weights } from './checkpoint/weights.ts';
export { type CalibratedConversionReport, convertCalibrated } from './conversion/calibrated/convert.ts';
export type { GroupUseReport } from './conversion/calibrated/group-use.ts';
export type { CalibrationCoverage } from './conversion/calibrated/method.ts';
export type { CalibratedConversionOptions } from './conversion/calibrated/options.ts';
export { type ConvertOptions, convertCheckpoint } from './conversion/convert.ts';
export type { SpaceShortage } from './conversion/free-space.ts';
export type { ConvertProgress, OutputOptions } from './conversion/options.ts';
export type { Change, ConversionReport, LayerReport } from './conversion/report.ts';
export type { SizeOptions } from './conversion/stacked-svd.ts';
export { distinctGroups } from './costs/distinct-groups.ts';
export {
  type Comparison,
  type CostOptions,
  type Costs,
  type Factorization,
  layerCosts,
} from './costs/layer-costs.ts';
export type { LayerSizes } from './costs/sizes.ts';
export { type Device, type DeviceInfo, type DeviceOptions, type MemoryUsage, openDevice } from './device.ts';
export { type BackendDiagnosis, type Diagnosis, diagnose } from './diagnosis.ts';
export type { BlockDType, DType, FloatDType, TypedArrayOf, WeightDType } from './dtype.ts';
export { MolaeError, type MolaeErrorCode } from './errors.ts';
export {
  type Activation,
  DenseExperts,
  type DenseExpertsInit,
  type DenseOperator,
  Experts,
  type ExpertsInit,
  type ForwardOptions,
  isLatent,
  LatentExperts,
  type LatentExpertsInit,
  type LatentOperator,
  type PackOptions,
  type SharedExpert,
  type StoredOperator,
} from './experts.ts';
export {
  type CalibratedGroups,
  type CalibratedOptions,
  calibratedSpectra,
  factorizeCalibrated,
} from './factorization/calibrated.ts';
export type { CalibratedSteps, LayerInputs, OperatorSpectrum } from './factorization/calibrated-group.ts';
export { type FactorizeOptions, factorizeExperts } from './factorization/factorize.ts';
export type { FactorStorage } from './factorization/factors.ts';
export type { FactorizeProgress, GroupedWork } from './factorization/grouped-work.ts';
export type { Partition } from './factorization/groups.ts';
export { type AllocationOptions, allocateLatentSizes, type Spending } from './factorization/latent-sizes.ts';
export type { FactorizationReport } from './factorization/report.ts';
export type { FactorizationSpec, Solver } from './factorization/spec.ts';
export {
  batchedGemm,
  type Eigh,
  eigh,
  type GemmOptions,
  type GroupedGemmProblem,
  type GroupedGemmResults,
  gemm,
  groupedGemm,
  type Svd,
  svd,
  transpose,
} from './linalg.ts';
export type { CalibratedForm } from './methods/calibrated/form.ts';
export {
  type SearchCandidate,
  type SearchedForm,
  type SearchOptions,
  type SearchReport,
  searchCalibrated,
} from './methods/calibrated/search.ts';
export { type CompareRequest, type ComparisonRow, compareMethods } from './methods/compare.ts';
export type { Grouping } from './methods/grouping/grouping.ts';
export {
  type CompressedLayer,
  type Compressor,
  type ExpertCosts,
  type Method,
  type MethodRequest,
  withExperts,
} from './methods/method.ts';
export { METHODS } from './methods/methods.ts';
export type { KeyValueCache } from './model/cache.ts';
export {
  type CalibrationOptions,
  calibrate,
  calibrationTokens,
  type LayerVisitor,
} from './model/calibration.ts';
export type { CalibrationLayer } from './model/calibration-layer.ts';
export { compareModels, type ModelComparison } from './model/compare.ts';
export { expertCoverage, type LayerCoverage } from './model/coverage.ts';
export { type FinishReason, type GenerateOptions, generate } from './model/generate.ts';
export { Model, type ModelOptions } from './model/model.ts';
export { type Perplexity, type PerplexityOptions, perplexity } from './model/perplexity.ts';
export {
  type GroupRouting,
  groupProbabilities,
  groupRouting,
  type RoutingStatistics,
  routingStatistics,
} from './model/routing-statistics.ts';
export type { SamplingOptions } from './model/sampling.ts';
export { StopText } from './model/stop-text.ts';
export { TextStream } from './model/text-stream.ts';
export { type ChatMessage, Tokenizer } from './model/tokenizer.ts';
export { sampleWindows } from './model/windows.ts';
export { MoeBlock, type MoeBlockInit } from './moe-block.ts';
export { OPERATORS, type Operator } from './operators.ts';
export { type ConversionPlan, planConversion } from './plan/plan-conversion.ts';
export type { PlanOptions } from './plan/request.ts';
export { quantizeExperts } from './quantize.ts';
export { type GroupLimit, type RouteOptions, type RouterSpec, type Routing, route } from './routing.ts';
export { type ResultTensor, type Shape, Tensor } from './tensor.ts';
