import { UsageError } from './usage-error.ts';

/** What was given for each option: switches are true, repeated options lists. */
export type OptionValues = Map<string, string | true | readonly string[]>;

/** The arguments of one call of a command; the getters check values and throw a UsageError that names the option. */
export class Arguments {
  readonly positionals: readonly string[];
  readonly #options: Readonly<OptionValues>;

  constructor(positionals: readonly string[], options: Readonly<OptionValues>) {
    this.positionals = positionals;
    this.#options = options;
  }

  positional(index: number): string {
    return this.positionals[index] as string;
  }

  /** Whether a switch was given. */
  has(name: string): boolean {
    return this.#options.has(name);
  }

  string(name: string): string | undefined {
    const value = this.#options.get(name);
    return typeof value === 'string' ? value : undefined;
  }

  /** All that were given for a repeatable option. */
  strings(name: string): readonly string[] {
    const value = this.#options.get(name);
    if (typeof value === 'string') return [value];
    return Array.isArray(value) ? value : [];
  }

  positiveInteger(name: string): number | undefined {
    const text = this.string(name);
    return text === undefined ? undefined : this.#positiveInteger(name, text);
  }

  /** An integer from 0 on. */
  integer(name: string): number | undefined {
    const text = this.string(name);
    if (text === undefined) return undefined;
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!Number.isSafeInteger(value)) throw this.wrong(name, 'an integer from 0 on', text);
    return value;
  }

  /** Positive integers, separated by commas, each once. */
  positiveIntegers(name: string): number[] | undefined {
    return this.#once(
      name,
      this.#items(name)?.map((item) => this.#positiveInteger(name, item)),
    );
  }

  /** A number between 0 and 1, both excluded. */
  share(name: string): number | undefined {
    const text = this.string(name);
    return text === undefined ? undefined : this.#share(name, text);
  }

  /** Numbers between 0 and 1, both excluded, separated by commas, each once. */
  shares(name: string): number[] | undefined {
    return this.#once(
      name,
      this.#items(name)?.map((item) => this.#share(name, item)),
    );
  }

  /** A number above 0, at most 1. */
  probability(name: string): number | undefined {
    const text = this.string(name);
    if (text === undefined) return undefined;
    const value = decimal(text);
    if (!(value > 0 && value <= 1)) throw this.wrong(name, 'a number above 0, at most 1', text);
    return value;
  }

  /** A number from `least` to `most`. */
  number(name: string, least: number, most: number): number | undefined {
    const text = this.string(name);
    if (text === undefined) return undefined;
    const value = decimal(text);
    if (!(value >= least && value <= most)) {
      const range =
        most === Number.MAX_VALUE ? `a number from ${least} on` : `a number from ${least} to ${most}`;
      throw this.wrong(name, range, text);
    }
    return value;
  }

  oneOf<Value extends string>(name: string, values: readonly Value[]): Value | undefined {
    const text = this.string(name);
    if (text === undefined) return undefined;
    const found = values.find((value) => value === text);
    if (found === undefined) throw this.wrong(name, values.join(' or '), text);
    return found;
  }

  /** Some of the values, separated by commas, each at most once. */
  list<Value extends string>(name: string, values: readonly Value[]): Value[] | undefined {
    const text = this.string(name);
    if (text === undefined) return undefined;
    const items = this.#items(name) as string[];
    const known = items.flatMap((item) => values.find((value) => value === item) ?? []);
    if (known.length !== items.length || new Set(known).size !== known.length) {
      throw this.wrong(name, `some of ${values.join(',')}, separated by commas, each once`, text);
    }
    return known;
  }

  /** The value of `--device`, by default `auto`. */
  device(): string {
    const name = this.string('device') ?? 'auto';
    if (!/^(auto|cpu|cuda(:\d{1,4})?)$/.test(name))
      throw this.wrong('device', 'auto, cpu, cuda or cuda:<index>', name);
    return name;
  }

  /** Refuses two options that contradict each other. */
  exclusive(first: string, second: string): void {
    if (this.has(first) && this.has(second))
      throw this.usage(`give either --${first} or --${second}, not both`);
  }

  usage(message: string): UsageError {
    return new UsageError(message);
  }

  wrong(name: string, wanted: string, received: string): UsageError {
    return this.usage(`Expected ${wanted} for --${name} but received ${JSON.stringify(received)}`);
  }

  #items(name: string): string[] | undefined {
    return this.string(name)
      ?.split(',')
      .map((item) => item.trim());
  }

  #once(name: string, values: number[] | undefined): number[] | undefined {
    const again = values?.find((value, i) => values.indexOf(value) < i);
    if (again !== undefined) throw this.usage(`--${name} has ${again} twice`);
    return values;
  }

  #positiveInteger(name: string, text: string): number {
    const value = /^\d+$/.test(text) ? Number(text) : 0;
    if (!Number.isSafeInteger(value) || value < 1) throw this.wrong(name, 'a positive integer', text);
    return value;
  }

  #share(name: string, text: string): number {
    const value = decimal(text);
    if (!(value > 0 && value < 1)) {
      throw this.wrong(name, 'a number between 0 and 1, both excluded (0.25 for 25%),', text);
    }
    return value;
  }
}

/** A number without a sign, as people write it (0.25, .25, 2.5e-1); NaN for anything else. */
function decimal(text: string): number {
  return /^(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : Number.NaN;
}
