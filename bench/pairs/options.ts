import { parseArgs } from 'node:util';
import { CELLS, LAYER_KINDS, type LayerCell, type LayerKind, scaleDown } from '../../lib/bench/cells.ts';
import type { LayerDType } from '../../lib/bench/layers.ts';
import { UsageError } from '../../lib/cli/usage-error.ts';

export interface PairsOptions {
  /** Of a checkout or package whose addon is measured against this one's. */
  readonly before: string;
  readonly cell: LayerCell;
  readonly kinds: readonly LayerKind[];
  readonly dtypes: readonly LayerDType[];
  readonly tokens: readonly number[];
  readonly threads: number;
  readonly rounds: number;
  /** Of one turn. */
  readonly seconds: number;
}

const DTYPES: readonly LayerDType[] = ['f32', 'bf16'];
const MODELS = [...new Set(CELLS.map(({ model }) => model))];

export const USAGE = `npm run bench:pairs -- --before folder [options]

Layers of this build and of another one, in turns, on a machine that others may disturb.

  --before folder  another checkout or an installed package: its build/Release or prebuilds, by the JavaScript of this one
  --model name     whose sizes: ${MODELS.join(', ')} (default: ${MODELS[0]})
  --experts n      at most so many of them (default: 16)
  --kinds a,b      ${LAYER_KINDS.join(', ')} (default: all)
  --dtypes a,b     ${DTYPES.join(', ')} (default: all)
  --tokens a,b     of a call (default: 1,4,16,64,512)
  --threads n      (default: all processors)
  --rounds n       of one turn each (default: 20)
  --seconds s      a turn (default: 0.3)`;

/** Undefined where help is asked for. Throws a UsageError for what is none of the options. */
export function parsePairsOptions(args: readonly string[]): PairsOptions | undefined {
  const values = parseValues(args);
  if (values.help) return undefined;
  if (values.before === undefined) throw new UsageError('--before: which folder?');
  const cell = CELLS.find(({ model }) => model === values.model);
  if (!cell) throw new UsageError(`--model: no such model: ${values.model}. There are ${MODELS.join(', ')}`);
  return {
    before: values.before,
    cell: scaleDown(cell, number('experts', values.experts, 1)),
    kinds: names('kinds', values.kinds, LAYER_KINDS),
    dtypes: names('dtypes', values.dtypes, DTYPES),
    tokens: values.tokens.split(',').map((text) => number('tokens', text, 1)),
    threads: number('threads', values.threads, 0),
    rounds: number('rounds', values.rounds, 1),
    seconds: positive('seconds', values.seconds),
  };
}

function parseValues(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: {
        before: { type: 'string' },
        model: { type: 'string', default: MODELS[0] as string },
        experts: { type: 'string', default: '16' },
        kinds: { type: 'string', default: LAYER_KINDS.join(',') },
        dtypes: { type: 'string', default: DTYPES.join(',') },
        tokens: { type: 'string', default: '1,4,16,64,512' },
        threads: { type: 'string', default: '0' },
        rounds: { type: 'string', default: '20' },
        seconds: { type: 'string', default: '0.3' },
        help: { type: 'boolean', default: false },
      },
    }).values;
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

function number(option: string, text: string, least: number): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isSafeInteger(value) || value < least)
    throw new UsageError(`--${option}: not a whole number of at least ${least}: ${text}`);
  return value;
}

function positive(option: string, text: string): number {
  const value = Number(text);
  if (!(value > 0 && value < Number.POSITIVE_INFINITY))
    throw new UsageError(`--${option}: not a number above 0: ${text}`);
  return value;
}

function names<Name extends string>(option: string, list: string, known: readonly Name[]): readonly Name[] {
  return list.split(',').map((text) => {
    const name = known.find((one) => one === text);
    if (name === undefined)
      throw new UsageError(`--${option}: no such one: ${text}. There are ${known.join(', ')}`);
    return name;
  });
}
