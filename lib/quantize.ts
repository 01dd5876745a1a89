import { type BlockDType, checkBlockDType } from './dtype.ts';
import { expected, MolaeError } from './errors.ts';
import { DenseExperts, Experts, isLatent, LatentExperts, type LatentOperator } from './experts.ts';
import { namingExpert } from './factorization/non-finite-expert.ts';
import { OPERATORS, type Operator } from './operators.ts';
import type { Tensor } from './tensor.ts';

/**
 * The same layer with its routed experts, dense or latent, in blocks of 8 or 4 bits: each weight rounded to the nearest
 * that its block holds (round to nearest, as llama.cpp's q8_0 and q4_0), run without being expanded in memory. The shared
 * expert stays as it is, and stays the original's. The original layer can be disposed.
 *
 * @throws MolaeError naming the matrix or factor: `NON_FINITE` with the position, `INVALID_ARGUMENT` for weights beyond
 *   what an f16 scale can give blocks, `DTYPE_MISMATCH` on a device without kernels for blocks.
 */
export async function quantizeExperts<Layer extends DenseExperts | LatentExperts>(
  experts: Layer,
  dtype: BlockDType,
): Promise<Layer>;
export async function quantizeExperts(
  experts: DenseExperts | LatentExperts,
  dtype: BlockDType,
): Promise<DenseExperts | LatentExperts> {
  if (!Experts.is(experts)) throw expected('DenseExperts or LatentExperts', 'experts', experts);
  checkBlockDType(dtype, 'dtype');
  // A basis that gate and up share stays one.
  const made = new Map<Tensor, Tensor>();
  const quantized = async (tensors: readonly Tensor[], toBlocks: ToBlocks) => {
    const blocks: Tensor[] = [];
    for (const [index, tensor] of tensors.entries()) {
      const known = made.get(tensor) ?? (await toBlocks(tensor, index));
      made.set(tensor, known);
      blocks.push(known);
    }
    return blocks;
  };
  try {
    const operators = {} as Record<Operator, LatentOperator | readonly Tensor[]>;
    for (const operator of OPERATORS) {
      const own = experts[operator];
      operators[operator] = isLatent(own)
        ? {
            a: await quantized(own.a, factorToBlocks(dtype, `${operator}.a`)),
            b: await quantized(own.b, factorToBlocks(dtype, `${operator}.b`)),
          }
        : await quantized(own, matrixToBlocks(dtype, operator));
    }
    const { activation, sharedExpert } = experts;
    const common = { activation, sharedExpert, owned: [...made.values()] };
    return experts instanceof LatentExperts
      ? new LatentExperts({ groups: experts.groups, ...operators, ...common })
      : new DenseExperts({ ...(operators as Record<Operator, readonly Tensor[]>), ...common });
  } catch (error) {
    for (const tensor of made.values()) tensor.dispose();
    throw error;
  }
}

/** Converts one of a list of tensors, and names it where that fails. */
type ToBlocks = (tensor: Tensor, index: number) => Promise<Tensor>;

function factorToBlocks(dtype: BlockDType, name: string): ToBlocks {
  return async (tensor, index) => {
    try {
      return await tensor.to(dtype);
    } catch (error) {
      if (!(error instanceof MolaeError)) throw error;
      throw new MolaeError(error.code, `${name}[${index}]: ${error.message}`, { cause: error });
    }
  };
}

function matrixToBlocks(dtype: BlockDType, operator: Operator): ToBlocks {
  const convert = factorToBlocks(dtype, operator);
  return (tensor, expert) => namingExpert(expert, operator, () => convert(tensor, expert));
}
