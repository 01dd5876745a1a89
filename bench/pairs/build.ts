import { fileURLToPath } from 'node:url';
import type { LayerCell, LayerKind } from '../../lib/bench/cells.ts';
import type { LayerDType } from '../../lib/bench/layers.ts';
import { Failure } from '../support/failure.ts';
import { TurnProcess } from '../support/turn-process.ts';
import type { Turn } from './turns.ts';

/** The layers that a process holds. */
export interface Layers {
  readonly cell: LayerCell;
  readonly dtype: LayerDType;
  readonly threads: number;
}

/** What a process is asked for: a while of batches through its layers. */
export interface Ask {
  readonly kind: LayerKind;
  readonly tokens: number;
  readonly seconds: number;
}

/** What a process says when it holds its layers. */
export interface Ready {
  readonly device: string;
}

const SCRIPT = fileURLToPath(new URL('./process.js', import.meta.url));

/** One build of the addon in a process of its own, which holds layers. */
export class Build {
  readonly #folder: string;
  readonly #process: TurnProcess<Ready, Turn>;

  private constructor(folder: string, process: TurnProcess<Ready, Turn>) {
    this.#folder = folder;
    this.#process = process;
  }

  /** `folder` is where node-gyp-build looks for the addon. Throws a Failure where it has none that works. */
  static async start(folder: string, layers: Layers): Promise<Build> {
    const args = [SCRIPT, JSON.stringify(layers)];
    const start = TurnProcess.start<Ready, Turn>(process.execPath, args, { MOLAE_PREBUILD: folder });
    return new Build(folder, await naming(folder, start));
  }

  turn(ask: Ask): Promise<Turn> {
    return naming(this.#folder, this.#process.turn(JSON.stringify(ask)));
  }

  [Symbol.dispose](): void {
    this.#process[Symbol.dispose]();
  }
}

async function naming<T>(folder: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw error instanceof Failure ? new Failure(`${folder}: ${error.message}`) : error;
  }
}
