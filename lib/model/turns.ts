import { abortedError, MolaeError, throwIfAborted } from '../errors.ts';

interface Waiter {
  readonly start: () => void;
  readonly refuse: (error: MolaeError) => void;
}

/**
 * Lets one piece of work run at a time, in the order they were asked for. Work must not ask for a turn itself, so pieces are
 * small and call nothing of the user's.
 */
export class Turns {
  readonly #waiting: Waiter[] = [];
  #busy = false;
  #closed = false;

  /**
   * Runs `work` when all that came before is done.
   *
   * @throws MolaeError `ABORTED` as soon as the signal fires, while waiting; `DISPOSED` after `close`.
   */
  async take<Result>(signal: AbortSignal | undefined, work: () => Promise<Result>): Promise<Result> {
    throwIfAborted(signal);
    if (this.#closed) throw closedError();
    if (this.#busy) await this.#wait(signal);
    this.#busy = true;
    try {
      return await work();
    } finally {
      this.#busy = false;
      this.#waiting.shift()?.start();
    }
  }

  /** Refuses what waits and all that comes later; resolves when the work in progress is done. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const { refuse } of this.#waiting.splice(0)) refuse(closedError());
    if (this.#busy) await this.#wait(undefined);
  }

  #wait(signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
        reject(abortedError(signal));
      };
      const waiter: Waiter = {
        start: () => {
          this.#busy = true; // from now on: what is asked for before this is resumed comes after it
          signal?.removeEventListener('abort', onAbort);
          resolve();
        },
        refuse: (error) => {
          signal?.removeEventListener('abort', onAbort);
          reject(error);
        },
      };
      this.#waiting.push(waiter);
      signal?.addEventListener('abort', onAbort, { once: true });
    });
  }
}

/** What calls on a closed model fail with. */
export function closedError(): MolaeError {
  return new MolaeError('DISPOSED', 'The model was closed');
}
