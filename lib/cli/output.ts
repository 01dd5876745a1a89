import type { MolaeErrorCode } from '../errors.ts';

/** What went wrong, in the words of the command line. */
export interface FailureReport {
  readonly code: MolaeErrorCode;
  readonly message: string;
  /** How to mend it, as far as that is known. */
  readonly advice: string | undefined;
}

/** The columns that text may take, `most` of a wide terminal; 80 where there is none. In fewer than 20 nothing can be read. */
export function columnsOf(stream: NodeJS.WriteStream, most: number): number {
  return Math.max(20, Math.min(most, stream.columns || 80));
}

/** Where results go: lines for people, or one JSON object for programs. */
export class Output {
  readonly json: boolean;

  #lineOpen = false;
  #toldResult = false;

  constructor(json: boolean) {
    this.json = json;
  }

  /** The result of a command, told once: stdout has either the lines (after those told before) or the object. */
  result(value: object, lines: () => readonly string[]): void {
    this.#lineOpen = false;
    this.#toldResult = true;
    process.stdout.write(this.json ? `${JSON.stringify(value, null, 2)}\n` : `${lines().join('\n')}\n`);
  }

  /** Why there is no result, for programs: people are told on stderr. */
  failure({ code, message, advice }: FailureReport): void {
    if (!this.json || this.#toldResult) return;
    process.stdout.write(`${JSON.stringify({ error: { code, message, advice } }, null, 2)}\n`);
  }

  /** A part of a result that people get as soon as it is there; programs wait for the object. */
  line(text: string): void {
    if (!this.json) process.stdout.write(`${text}\n`);
  }

  /** A part of a line, for people who read as it is written; the rest of the line comes with other pieces or the result. */
  piece(text: string): void {
    if (this.json || text === '') return;
    process.stdout.write(text);
    this.#lineOpen = true;
  }

  /** Ends a line that will not be finished. */
  endLine(): void {
    if (this.#lineOpen) process.stdout.write('\n');
    this.#lineOpen = false;
  }

  /** A remark beside the result, for people. */
  note(text: string): void {
    process.stderr.write(`${text}\n`);
  }

  /** Whether who read the results has gone away (`| head -1`). */
  get isClosed(): boolean {
    return process.stdout.errored !== null;
  }

  /** The columns of the terminal that results go to, undefined where they go elsewhere. */
  get terminalWidth(): number | undefined {
    return process.stdout.columns || undefined;
  }

  /** The columns that text may take. */
  get width(): number {
    return columnsOf(process.stdout, 100);
  }
}
