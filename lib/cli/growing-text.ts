import type { Tokenizer } from '../model/tokenizer.ts';

/** A text whose tokens come one by one, for a reader who gets it as it grows. */
export class GrowingText {
  readonly #tokenizer: Tokenizer;
  readonly #tokens: number[] = [];
  #given = '';

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  get tokens(): number {
    return this.#tokens.length;
  }

  /** All of it. */
  get text(): string {
    return this.#tokenizer.decode(this.#tokens);
  }

  /** @returns what can be read since the last piece: an unfinished character waits for the rest of its bytes. */
  add(token: number): string {
    this.#tokens.push(token);
    const { text } = this;
    // Some tokenizers take back a space before what follows: that waits, too.
    if (text.endsWith('\ufffd') || !text.startsWith(this.#given)) return '';
    const piece = text.slice(this.#given.length);
    this.#given = text;
    return piece;
  }

  /** What was not given yet, at the end. */
  rest(): string {
    const { text } = this;
    return text.startsWith(this.#given) ? text.slice(this.#given.length) : `\n${text}`;
  }
}
