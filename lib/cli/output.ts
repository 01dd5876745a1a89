/** Where results go: lines for people, or one JSON object for programs. */
export class Output {
  readonly json: boolean;

  constructor(json: boolean) {
    this.json = json;
  }

  /** The result of a command, told once: stdout has either the lines (after those told before) or the object. */
  result(value: object, lines: () => readonly string[]): void {
    process.stdout.write(this.json ? `${JSON.stringify(value, null, 2)}\n` : `${lines().join('\n')}\n`);
  }

  /** A part of a result that people get as soon as it is there; programs wait for the object. */
  line(text: string): void {
    if (!this.json) process.stdout.write(`${text}\n`);
  }

  /** A remark beside the result, for people. */
  note(text: string): void {
    process.stderr.write(`${text}\n`);
  }

  /** The columns that text may take. */
  get width(): number {
    return Math.max(40, Math.min(100, process.stdout.columns ?? 80));
  }
}
