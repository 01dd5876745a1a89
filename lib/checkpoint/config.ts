import { join } from 'node:path';
import { readJsonObject } from './files.ts';
import { isJsonObject, type JsonObject } from './json.ts';
import { badCheckpoint, quote } from './problems.ts';

export const CONFIG_FILE = 'config.json';

const MAX_CONFIG_BYTES = 16 * 1024 * 1024;

/**
 * A `config.json` with getters that check types. A field that is `null` counts as absent, as transformers writes
 * it. Every getter throws BAD_CHECKPOINT naming the file, the field and its value.
 */
export class ModelConfig {
  /** Where it came from, for messages. */
  readonly file: string;
  /** The JSON object as it is. */
  readonly raw: JsonObject;

  constructor(raw: JsonObject, file: string = CONFIG_FILE) {
    this.raw = raw;
    this.file = file;
  }

  /** Reads `config.json` of a checkpoint's folder. */
  static async read(folder: string): Promise<ModelConfig> {
    const file = join(folder, CONFIG_FILE);
    return new ModelConfig(await readJsonObject(file, MAX_CONFIG_BYTES), file);
  }

  has(field: string): boolean {
    return this.value(field) !== undefined;
  }

  /** The value of a field, unchecked; undefined when it is absent or null. */
  value(field: string): unknown {
    return Object.hasOwn(this.raw, field) ? (this.raw[field] ?? undefined) : undefined;
  }

  /** An integer from 1 on. With several names (families disagree on some), the first that is present counts. */
  positiveInteger(...names: [string, ...string[]]): number {
    const field = names.find((name) => this.has(name)) ?? names[0];
    return this.#integerFrom(1, field, this.#required(field));
  }

  /** As {@link positiveInteger}, or undefined when no such field is present. */
  optionalPositiveInteger(...names: [string, ...string[]]): number | undefined {
    return names.some((name) => this.has(name)) ? this.positiveInteger(...names) : undefined;
  }

  /** An integer from 0 on. With several names, the first that is present counts. */
  nonNegativeInteger(...names: [string, ...string[]]): number {
    const field = names.find((name) => this.has(name)) ?? names[0];
    return this.#integerFrom(0, field, this.#required(field));
  }

  /** As {@link nonNegativeInteger}, or undefined when no such field is present. */
  optionalNonNegativeInteger(...names: [string, ...string[]]): number | undefined {
    return names.some((name) => this.has(name)) ? this.nonNegativeInteger(...names) : undefined;
  }

  /** A boolean, `fallback` when absent. */
  boolean(field: string, fallback: boolean): boolean {
    const value = this.value(field) ?? fallback;
    if (typeof value !== 'boolean') throw this.#wrong(field, value, 'true or false');
    return value;
  }

  /** A finite number, `fallback` when absent. */
  number(field: string, fallback: number): number {
    const value = this.value(field) ?? fallback;
    if (typeof value !== 'number' || !Number.isFinite(value))
      throw this.#wrong(field, value, 'a finite number');
    return value;
  }

  nonNegativeNumber(field: string, fallback: number): number {
    const value = this.number(field, fallback);
    if (value < 0) throw this.#wrong(field, value, 'a number of at least 0');
    return value;
  }

  string(field: string): string {
    const value = this.#required(field);
    if (typeof value !== 'string') throw this.#wrong(field, value, 'a string');
    return value;
  }

  optionalString(field: string): string | undefined {
    return this.has(field) ? this.string(field) : undefined;
  }

  /** An array of integers from 0 on, empty when absent. */
  integerList(field: string): readonly number[] {
    const value = this.value(field) ?? [];
    if (!Array.isArray(value)) throw this.#wrong(field, value, 'an array of integers');
    return value.map((item) => this.#integerFrom(0, field, item));
  }

  /** An array of strings, undefined when absent. */
  optionalStringList(field: string): readonly string[] | undefined {
    const value = this.value(field);
    if (value === undefined) return undefined;
    if (!Array.isArray(value) || !value.every((item) => typeof item === 'string')) {
      throw this.#wrong(field, value, 'an array of strings');
    }
    return value;
  }

  /** An object, undefined when absent. */
  optionalObject(field: string): JsonObject | undefined {
    const value = this.value(field);
    if (value !== undefined && !isJsonObject(value)) throw this.#wrong(field, value, 'an object');
    return value;
  }

  #required(field: string): unknown {
    const value = this.value(field);
    if (value === undefined) throw badCheckpoint(this.file, `the field ${field} is missing`);
    return value;
  }

  #integerFrom(least: number, field: string, value: unknown): number {
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < least) {
      throw this.#wrong(field, value, least === 0 ? 'a non-negative integer' : 'a positive integer');
    }
    return value;
  }

  #wrong(field: string, value: unknown, wanted: string) {
    return badCheckpoint(this.file, `${field} is ${quote(value)}, not ${wanted}`);
  }
}
