import { parseArgs } from 'node:util';
import { UsageError } from '../../lib/cli/usage-error.ts';

interface BenchOptions {
  /** Names of questions; empty for all. */
  readonly only: readonly string[];
  /** Few cells, small layers, few samples: minutes, for a first look. */
  readonly quick: boolean;
  /** 0 for every processor. */
  readonly threads: number;
  /** Run the peers that are installed. */
  readonly peers: boolean;
  /** Compare with the stored results and fail where a tracked ratio fell. */
  readonly check: boolean;
  /** Folder for results; by default bench/results, for quick and partial runs build/bench/results. */
  readonly out: string | undefined;
}

export const USAGE = `npm run bench [-- options]
  --only a,b      these questions only (a prefix will do: "layer" is all that begin with it)
  --quick         small layers and few samples: a few minutes
  --threads n     of the CPU device, of OpenBLAS and of the peers (default: all processors)
  --no-peers      leave out onnxruntime, llama.cpp, numpy and PyTorch
  --check         compare with the stored results of this machine: exit code 1 where a ratio fell by more than 15%,
                  and again when measured once more
  --out folder    where results go (default: bench/results; with --quick, build/bench/results)

As if the processor had AVX2 only, with results of their own:
  MOLAE_INSTRUCTIONS=avx2 OPENBLAS_CORETYPE=Haswell npm run bench -- --no-peers`;

/** Undefined where help is asked for. Throws a UsageError for what is none of the options. */
export function parseOptions(args: readonly string[]): BenchOptions | undefined {
  const values = parseValues(args);
  if (values.help) return undefined;
  const threads = Number(values.threads);
  if (!Number.isSafeInteger(threads) || threads < 0)
    throw new UsageError(`--threads: not a number: ${values.threads}`);
  return {
    only: values.only.flatMap((list) => list.split(',')).filter((name) => name !== ''),
    quick: values.quick,
    threads,
    peers: !values['no-peers'],
    check: values.check,
    out: values.out,
  };
}

function parseValues(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: {
        only: { type: 'string', multiple: true, default: [] },
        quick: { type: 'boolean', default: false },
        threads: { type: 'string', default: '0' },
        'no-peers': { type: 'boolean', default: false },
        check: { type: 'boolean', default: false },
        out: { type: 'string' },
        help: { type: 'boolean', default: false },
      },
    }).values;
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}
