import { MolaeError } from '../errors.ts';

/** The user, or the system, stopped the work. */
export class Interruption extends MolaeError {
  readonly signal: 'SIGINT' | 'SIGTERM';

  constructor(signal: 'SIGINT' | 'SIGTERM', cause: unknown) {
    super('ABORTED', `Stopped by ${signal}`, { cause });
    this.signal = signal;
  }
}

/**
 * Runs abortable work: the first SIGINT or SIGTERM aborts it, so that it can clean up; a second one kills the process as
 * if there were no handler.
 *
 * @throws Interruption when it was stopped that way.
 */
export async function interruptible<Result>(
  work: (signal: AbortSignal) => Promise<Result>,
  onInterrupt: () => void,
): Promise<Result> {
  const controller = new AbortController();
  let received: 'SIGINT' | 'SIGTERM' | undefined;
  const stop = (signal: 'SIGINT' | 'SIGTERM') => {
    received = signal;
    unlisten();
    onInterrupt();
    controller.abort(new Error(signal));
  };
  const unlisten = () => {
    process.off('SIGINT', stop);
    process.off('SIGTERM', stop);
  };
  process.on('SIGINT', stop);
  process.on('SIGTERM', stop);
  try {
    return await work(controller.signal);
  } catch (error) {
    const aborted = error instanceof MolaeError && error.code === 'ABORTED';
    throw received !== undefined && aborted ? new Interruption(received, error) : error;
  } finally {
    unlisten();
  }
}
