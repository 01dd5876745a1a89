import type { Tokenizer } from './tokenizer.ts';

/** Tokens that say how the next one continues them. */
const MOST_CONTEXT = 16;

/**
 * The text of tokens that come one by one, in pieces for a reader who gets it as it grows. A piece costs the same however
 * long the text is.
 *
 * ```ts
 * const prompt = tokenizer.encodePrompt('Call me');
 * const stream = new TextStream(tokenizer, prompt);
 * for await (const token of generate(model, prompt)) process.stdout.write(stream.add(token));
 * process.stdout.write(stream.end());
 * ```
 */
export class TextStream {
  readonly #tokenizer: Tokenizer;
  /** Those of the last piece, which say how the next ones continue it (with a space or without), and those after it. */
  #tokens: number[] = [];
  #lastPiece = 0;
  /** What was given of the last piece's tokens, as they read by themselves. */
  #given = '';

  /** @param after what the text goes on from, such as a prompt: the first piece may begin with the space between them. */
  constructor(tokenizer: Tokenizer, after: readonly number[] = []) {
    this.#tokenizer = tokenizer;
    this.#tokens = after.filter((token) => !tokenizer.isSpecial(token)).slice(-MOST_CONTEXT);
    this.#lastPiece = this.#tokens.length;
    this.#given = tokenizer.decode(this.#tokens);
  }

  /** @returns what can be read since the last piece, or '': an unfinished character waits for the rest of its bytes. */
  add(token: number): string {
    if (this.#tokenizer.isSpecial(token)) return '';
    this.#tokens.push(token);
    const text = this.#tokenizer.decode(this.#tokens);
    // Of bytes that are no characters, only the last ones may become one.
    const waiting = text.endsWith('\ufffd') ? 1 : 0;
    const piece = this.#since(text.slice(0, text.length - waiting));
    if (piece === '') return '';
    this.#tokens = this.#tokens.slice(this.#lastPiece);
    this.#lastPiece = this.#tokens.length;
    const alone = this.#tokenizer.decode(this.#tokens);
    this.#given = alone.slice(0, alone.length - waiting);
    return piece;
  }

  /** @returns what was kept waiting, such as a character that stays unfinished. The next token begins a new text. */
  end(): string {
    const rest = this.#since(this.#tokenizer.decode(this.#tokens));
    this.#tokens = [];
    this.#lastPiece = 0;
    this.#given = '';
    return rest;
  }

  /** What follows the last piece. Some tokenizers take back a space before a full stop: what was given stays given. */
  #since(text: string): string {
    return text.slice(commonPrefix(text, this.#given));
  }
}

function commonPrefix(a: string, b: string): number {
  let length = 0;
  while (length < a.length && a[length] === b[length]) length++;
  return length;
}
