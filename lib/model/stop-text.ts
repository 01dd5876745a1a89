import { expected } from '../errors.ts';

/**
 * Ends a text, which comes in pieces, before the first of some strings. What may become one waits until that is known.
 *
 * ```ts
 * const stop = new StopText(['\n\n', 'User:']);
 * for await (const token of generate(model, prompt)) {
 *   process.stdout.write(stop.add(stream.add(token)));
 *   if (stop.found !== undefined) break;
 * }
 * process.stdout.write(stop.add(stream.end()) + stop.end());
 * ```
 */
export class StopText {
  readonly #stops: readonly string[];
  #waiting = '';
  #found: string | undefined;

  /** @throws MolaeError `INVALID_ARGUMENT` for an empty string: every text has it. */
  constructor(stops: readonly string[]) {
    if (!Array.isArray(stops)) throw expected('an array of strings', 'stops', stops);
    for (const stop of stops) {
      if (typeof stop !== 'string' || stop === '') throw expected('a string that is not empty', 'stop', stop);
    }
    this.#stops = [...stops];
  }

  /** The string that ended the text, once it has. */
  get found(): string | undefined {
    return this.#found;
  }

  /** @returns what is sure to belong to the text of it and of what waited; '' once the text has ended. */
  add(piece: string): string {
    if (this.#found !== undefined) return '';
    const text = this.#waiting + piece;
    const first = this.#first(text);
    if (first !== undefined) {
      this.#found = first.stop;
      this.#waiting = '';
      return text.slice(0, first.at);
    }
    const sure = text.length - this.#begun(text);
    this.#waiting = text.slice(sure);
    return text.slice(0, sure);
  }

  /** @returns what was kept waiting: the text has ended otherwise. */
  end(): string {
    const rest = this.#waiting;
    this.#waiting = '';
    return rest;
  }

  /** The string that is complete first, and of several at once the longest: so the pieces do not matter. */
  #first(text: string): { readonly stop: string; readonly at: number } | undefined {
    let first: { readonly stop: string; readonly at: number; readonly end: number } | undefined;
    for (const stop of this.#stops) {
      const at = text.indexOf(stop);
      const end = at + stop.length;
      if (at < 0 || (first !== undefined && (end > first.end || (end === first.end && at >= first.at))))
        continue;
      first = { stop, at, end };
    }
    return first;
  }

  /** How many characters at the end begin one of the strings, as many as may. */
  #begun(text: string): number {
    const longest = Math.max(0, ...this.#stops.map(({ length }) => length));
    for (let length = Math.min(text.length, longest - 1); length > 0; length--) {
      const end = text.slice(-length);
      if (this.#stops.some((stop) => stop.startsWith(end))) return length;
    }
    return 0;
  }
}
