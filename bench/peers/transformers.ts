import type { TurnProcess } from '../support/turn-process.ts';
import { startPython } from './python.ts';

/** What its first pass found. */
interface Evaluated {
  readonly version: string;
  readonly perplexity: number;
  readonly tokens: number;
}

/** Perplexity by PyTorch and transformers on the CPU: a turn is a pass over all windows. */
export function startTransformersEval(
  checkpoint: string,
  tokenFile: string,
  name: string,
  windows: number,
  threads: number,
): Promise<TurnProcess<Evaluated>> {
  return startPython('transformers_eval.py', [checkpoint, tokenFile, name, windows, threads], threads);
}
