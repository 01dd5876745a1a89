import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import type { LayerCell, LayerKind } from '../../lib/bench/cells.ts';
import type { LayerDType } from '../../lib/bench/layers.ts';
import { Failure } from '../support/failure.ts';
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

export type Answer = { readonly ready: true } | Turn | { readonly failed: string };

/** One build of the addon in a process of its own, which holds layers and sleeps between its turns. */
export class Build {
  readonly #process: ChildProcess;

  private constructor(process: ChildProcess) {
    this.#process = process;
  }

  /** `folder` is where node-gyp-build looks for the addon. Throws a Failure where it has none that works. */
  static async start(folder: string, layers: Layers): Promise<Build> {
    const process = fork(new URL('./process.js', import.meta.url), [JSON.stringify(layers)], {
      env: { ...globalThis.process.env, MOLAE_PREBUILD: folder },
    });
    const build = new Build(process);
    try {
      await build.#answer();
    } catch (error) {
      build[Symbol.dispose]();
      throw new Failure(`${folder}: ${(error as Error).message}`);
    }
    return build;
  }

  async turn(ask: Ask): Promise<Turn> {
    this.#process.send(ask);
    return (await this.#answer()) as Turn;
  }

  async #answer(): Promise<Exclude<Answer, { readonly failed: string }>> {
    const settled = new AbortController();
    const { signal } = settled;
    try {
      const [answer] = (await Promise.race([
        once(this.#process, 'message', { signal }),
        once(this.#process, 'exit', { signal }).then(([code, by]) => [
          { failed: `ended with ${by ?? code}` },
        ]),
      ])) as [Answer];
      if ('failed' in answer) throw new Failure(answer.failed);
      return answer;
    } finally {
      settled.abort();
    }
  }

  [Symbol.dispose](): void {
    this.#process.kill();
  }
}
