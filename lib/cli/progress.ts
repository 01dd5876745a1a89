import cliProgress from 'cli-progress';
import { interruptible } from './signals.ts';
import { duration } from './table.ts';

/** Shows how far a long work has come. */
interface Progress {
  /** @param note what is at work now, a few words */
  update(done: number, total: number, note: string): void;
  /** All is done, however much of it was told. */
  complete(): void;
  /** Ends it, so that other lines may follow; may be called twice. */
  stop(): void;
}

/**
 * Runs abortable work that shows how far it has come. What is shown has ended when this settles, and before `onInterrupt` is
 * called.
 *
 * @throws Interruption when the user, or the system, stopped it.
 */
export async function withProgress<Result>(
  label: string,
  work: (signal: AbortSignal, progress: Pick<Progress, 'update'>) => Promise<Result>,
  onInterrupt: () => void = () => {},
): Promise<Result> {
  const progress = openProgress(label, process.stderr);
  try {
    const result = await interruptible(
      (signal) => work(signal, progress),
      () => {
        progress.stop();
        onInterrupt();
      },
    );
    progress.complete();
    return result;
  } finally {
    progress.stop();
  }
}

/** A bar where stderr is a terminal that can draw one, else now and then a plain line. */
export function openProgress(label: string, stream: NodeJS.WriteStream): Progress {
  return stream.isTTY && process.env.TERM !== 'dumb' ? new Bar(label, stream) : new Lines(label, stream);
}

class Bar implements Progress {
  readonly #bar: cliProgress.SingleBar;
  readonly #label: string;
  #started = false;

  constructor(label: string, stream: NodeJS.WriteStream) {
    this.#label = label;
    this.#bar = new cliProgress.SingleBar({
      stream,
      // In 80 columns, with notes up to 24 characters.
      format: '{label} {bar} {percentage}%  {left}  {note}',
      barsize: Math.max(8, Math.min(30, (stream.columns ?? 80) - 50)),
      barCompleteChar: '█',
      barIncompleteChar: '░',
      fps: 10,
      hideCursor: true,
      clearOnComplete: true,
      // Signals are ours: the command cleans up first.
      gracefulExit: false,
      etaBuffer: 50,
    });
  }

  update(done: number, total: number, note: string): void {
    if (!this.#started) {
      this.#started = true;
      this.#bar.start(total, 0, { label: this.#label, note, left: '' });
    }
    // Another total is another stage, whose steps take another time.
    if (total !== this.#total) {
      this.#total = total;
      this.#bar.setTotal(total);
      this.#startedAt = performance.now();
    }
    this.#bar.update(done, { note, left: this.#timeLeft(done, total) });
  }

  #total = 0;
  #startedAt = 0;

  #timeLeft(done: number, total: number): string {
    const seconds = (performance.now() - this.#startedAt) / 1000;
    if (seconds < 1 || done === 0) return '';
    return `${duration((seconds * (total - done)) / done)} left`;
  }

  complete(): void {}

  stop(): void {
    if (this.#started) this.#bar.stop();
    this.#started = false;
  }
}

/** A line at the start, one for each tenth, but none within a second of the one before, nor silence for long, and one at the end. */
class Lines implements Progress {
  readonly #label: string;
  readonly #stream: NodeJS.WritableStream;
  #lastTime = Number.NEGATIVE_INFINITY;
  #lastTenth = -1;
  #total = 0;
  #toldAll = false;

  constructor(label: string, stream: NodeJS.WritableStream) {
    this.#label = label;
    this.#stream = stream;
  }

  update(done: number, total: number, note: string): void {
    if (total !== this.#total) this.#lastTenth = -1;
    this.#total = total;
    const now = performance.now();
    const tenth = Math.floor((10 * done) / total);
    const quiet = now - this.#lastTime;
    if (quiet < 1000 || (tenth === this.#lastTenth && quiet < 30_000)) return;
    this.#lastTime = now;
    this.#lastTenth = tenth;
    this.#tell(done, note);
  }

  complete(): void {
    if (this.#total > 0 && !this.#toldAll) this.#tell(this.#total, '');
  }

  stop(): void {}

  #tell(done: number, note: string): void {
    const total = this.#total;
    this.#toldAll = done === total;
    const share = Math.floor((100 * done) / total);
    this.#stream.write(`${this.#label}: ${share}% (${done} of ${total})${note === '' ? '' : `, ${note}`}\n`);
  }
}
