import { type ChildProcess, type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { Took } from '../../lib/bench/timing.ts';
import { SIGNALS } from '../../lib/cli/signals.ts';
import { Failure } from './failure.ts';

/** The longest that a process may take to get ready, or for a turn. */
const PATIENCE_MS = 10 * 60_000;

/** How long a turn took, by the process's own clock. */
export interface Timed {
  readonly ms: number;
}

/**
 * A process that takes turns with others: a peer, or another build of molae. When it is ready it prints a line of JSON; then
 * for every line that it reads it runs what that names, and prints how it went, a line of JSON again; or `{"failed": …}`, if
 * it knows better than its last line on stderr what went wrong. Between its turns it is stopped, as threads that spin while
 * they wait would take processors from whoever is next.
 */
export class TurnProcess<Ready, Turn extends Timed = Timed> {
  /** What it said when it was ready. */
  readonly ready: Ready;
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #answers: Answers;

  private constructor(child: ChildProcessWithoutNullStreams, answers: Answers, ready: Ready) {
    this.#child = child;
    this.#answers = answers;
    this.ready = ready;
    child.kill('SIGSTOP');
  }

  /** Throws a Failure where the process ends before it is ready. */
  static async start<Ready, Turn extends Timed = Timed>(
    command: string,
    args: readonly string[],
    env: NodeJS.ProcessEnv = {},
  ): Promise<TurnProcess<Ready, Turn>> {
    const child = spawn(command, [...args], { env: { ...process.env, ...env } });
    endWithUs(child);
    child.stdin.on('error', () => {}); // it ended: the next answer says so
    const answers = new Answers(child);
    try {
      return new TurnProcess<Ready, Turn>(child, answers, await answers.next<Ready>());
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
  }

  /** Throws a Failure where the process ends meanwhile. */
  async turn(what = ''): Promise<Turn> {
    this.#child.kill('SIGCONT');
    this.#child.stdin.write(`${what}\n`);
    const turn = await this.#answers.next<Turn>();
    this.#child.kill('SIGSTOP');
    return turn;
  }

  /** A turn as a call that is timed beside others. */
  async time(what = ''): Promise<Took> {
    return new Took((await this.turn(what)).ms);
  }

  [Symbol.dispose](): void {
    this.#child.kill('SIGKILL');
  }
}

const living = new Set<ChildProcess>();

/** A child that is stopped would not notice that we are gone, whatever we die of. */
function endWithUs(child: ChildProcess): void {
  if (living.size === 0) listen('on');
  living.add(child);
  child.once('close', () => {
    living.delete(child);
    if (living.size === 0) listen('off');
  });
}

function listen(how: 'on' | 'off'): void {
  process[how]('exit', killLiving);
  for (const signal of SIGNALS) process[how](signal, dieOf);
}

function killLiving(): void {
  for (const child of living) child.kill('SIGKILL');
}

function dieOf(signal: NodeJS.Signals): void {
  killLiving();
  listen('off');
  process.kill(process.pid, signal);
}

/** What a process prints, line by line. */
class Answers {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;
  /** What it died of, where it did. */
  readonly #end: Promise<string>;

  constructor(child: ChildProcessWithoutNullStreams) {
    this.#child = child;
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    let said = '';
    child.stderr.on('data', (text) => {
      said = `${said}${text}`.slice(-4096);
    });
    this.#end = new Promise((resolve) => {
      child.once('error', ({ message }) => resolve(message));
      child.once('close', (code, signal) => resolve(complaint(said) || `ended with ${signal ?? code}`));
    });
  }

  async next<Answer>(): Promise<Answer> {
    const kill = setTimeout(() => this.#child.kill('SIGKILL'), PATIENCE_MS);
    try {
      const { value, done } = await this.#lines.next();
      if (done) throw new Failure(await this.#end);
      const answer = parse(value) as Answer | Failed;
      if (isFailed(answer)) throw new Failure(answer.failed);
      return answer;
    } finally {
      clearTimeout(kill);
    }
  }
}

/** What a process may say in place of any answer. */
export interface Failed {
  readonly failed: string;
}

function isFailed(answer: unknown): answer is Failed {
  return typeof answer === 'object' && answer !== null && 'failed' in answer;
}

function parse(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    throw new Failure(`it said ${line}`);
  }
}

/** The last error that a process told of, or what it said last. */
function complaint(said: string): string | undefined {
  const lines = said.trim().split('\n');
  return lines.findLast((line) => /^[A-Z]\w+( \[\w+\])?: /.test(line)) ?? lines.at(-1);
}
