import { MolaeError } from '../errors.ts';

/** Ctrl-C; `kill` and a system that shuts down; a terminal that is closed. */
export const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
type Signal = (typeof SIGNALS)[number];

/** The user, or the system, stopped the work. */
export class Interruption extends MolaeError {
  readonly signal: Signal;

  constructor(signal: Signal, cause: unknown) {
    super('ABORTED', `Stopped by ${signal}`, { cause });
    this.signal = signal;
  }
}

/**
 * Runs abortable work: the first of these signals aborts it, so that it can clean up; a second one kills the process as
 * if there were no handler.
 *
 * @throws Interruption when it was stopped that way.
 */
export async function interruptible<Result>(
  work: (signal: AbortSignal) => Promise<Result>,
  onInterrupt: () => void,
): Promise<Result> {
  const controller = new AbortController();
  let received: Signal | undefined;
  const stop = (signal: Signal) => {
    received = signal;
    unlisten();
    onInterrupt();
    controller.abort(new Error(signal));
  };
  const unlisten = () => {
    for (const signal of SIGNALS) process.off(signal, stop);
  };
  for (const signal of SIGNALS) process.on(signal, stop);
  try {
    return await work(controller.signal);
  } catch (error) {
    const aborted = error instanceof MolaeError && error.code === 'ABORTED';
    throw received !== undefined && aborted ? new Interruption(received, error) : error;
  } finally {
    unlisten();
  }
}
