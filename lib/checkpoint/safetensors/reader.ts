import type { FileHandle } from 'node:fs/promises';
import { expected, MolaeError } from '../../errors.ts';
import { openForReading, readFully } from '../files.ts';
import { badCheckpoint, quote } from '../problems.ts';
import {
  LENGTH_BYTES,
  parseHeader,
  parseHeaderLength,
  type SafetensorsHeader,
  type TensorEntry,
} from './header.ts';

/**
 * A safetensors file, read by position and never mapped into memory: a file that shrinks is an error, not a
 * crash. Reads may run at the same time.
 */
export class SafetensorsFile {
  readonly path: string;
  /** The tensors in the order of their bytes in the file. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** The free-form text of the header (`__metadata__`). */
  readonly metadata: ReadonlyMap<string, string>;
  readonly #handle: FileHandle;
  #closing: Promise<void> | undefined;

  private constructor(path: string, handle: FileHandle, header: SafetensorsHeader) {
    this.path = path;
    this.#handle = handle;
    this.tensors = header.tensors;
    this.metadata = header.metadata;
  }

  /**
   * Opens a file and validates its header; no tensor is read yet.
   *
   * @throws BAD_CHECKPOINT when the file is missing or not sound, IO when it cannot be read.
   */
  static async open(path: string): Promise<SafetensorsFile> {
    const { handle, size } = await openForReading(path);
    try {
      const prefix = new Uint8Array(Math.min(size, LENGTH_BYTES));
      await readFully(handle, path, prefix, 0);
      const header = new Uint8Array(parseHeaderLength(prefix, size, path));
      await readFully(handle, path, header, LENGTH_BYTES);
      return new SafetensorsFile(path, handle, parseHeader(header, size, path));
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /**
   * Reads a whole tensor: its bytes, row-major and little-endian.
   *
   * @param into memory of at least `byteLength` bytes to fill instead of fresh memory.
   * @returns exactly the tensor's bytes; a view of the start of `into` where that was given.
   * @throws BAD_CHECKPOINT for an unknown name or a file that shrank, INVALID_ARGUMENT when `into` is too
   *   small, OUT_OF_MEMORY, IO, DISPOSED after `close()`.
   */
  async read(name: string, into?: Uint8Array): Promise<Uint8Array> {
    return this.readRange(name, 0, this.#entry(name).byteLength, into);
  }

  /** Reads `byteLength` bytes of a tensor from its byte `byteOffset` on. For the rest see {@link read}. */
  async readRange(
    name: string,
    byteOffset: number,
    byteLength: number,
    into?: Uint8Array,
  ): Promise<Uint8Array> {
    const entry = this.#entry(name);
    checkRange(byteOffset, byteLength, entry.byteLength);
    const target = into === undefined ? allocate(byteLength, name) : prefixOf(into, byteLength);
    if (this.#closing !== undefined) throw new MolaeError('DISPOSED', `${this.path} is closed`);
    try {
      await readFully(this.#handle, this.path, target, entry.position + byteOffset);
    } catch (error) {
      if (this.#closing !== undefined)
        throw new MolaeError('DISPOSED', `${this.path} was closed during a read`);
      throw error;
    }
    return target;
  }

  /** Closes the file. A read in flight completes or is refused with DISPOSED. Closing twice does nothing more. */
  close(): Promise<void> {
    this.#closing ??= this.#handle.close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #entry(name: string): TensorEntry {
    const entry = this.tensors.get(name);
    if (entry === undefined) throw badCheckpoint(this.path, `there is no tensor ${quote(name)}`);
    return entry;
  }
}

function checkRange(byteOffset: number, byteLength: number, available: number): void {
  if (!Number.isSafeInteger(byteOffset) || byteOffset < 0 || byteOffset > available) {
    throw expected(`an integer from 0 to ${available}`, 'byteOffset', byteOffset);
  }
  if (!Number.isSafeInteger(byteLength) || byteLength < 0 || byteLength > available - byteOffset) {
    throw expected(`an integer from 0 to ${available - byteOffset}`, 'byteLength', byteLength);
  }
}

function allocate(byteLength: number, name: string): Uint8Array {
  try {
    return new Uint8Array(byteLength);
  } catch (cause) {
    throw new MolaeError('OUT_OF_MEMORY', `No memory for the ${byteLength} bytes of tensor ${quote(name)}`, {
      cause,
    });
  }
}

function prefixOf(into: Uint8Array, byteLength: number): Uint8Array {
  if (!(into instanceof Uint8Array) || into.byteLength < byteLength) {
    throw expected(`a Uint8Array of at least ${byteLength} bytes`, 'into', into);
  }
  return into.subarray(0, byteLength);
}
