import { type FileHandle, open, unlink } from 'node:fs/promises';
import { expected, MolaeError } from '../../errors.ts';
import { attempt } from '../../files.ts';
import { writeFully } from '../files.ts';
import { quote } from '../problems.ts';
import { DTYPE_BYTES, isDtype, isEncodable, isShape, type SafetensorsDtype, tensorBytes } from './dtype.ts';
import { LENGTH_BYTES, MAX_HEADER_BYTES, METADATA_KEY } from './header.ts';

/** A tensor to be written: everything but its bytes. */
export interface TensorDeclaration {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
}

/** Where a declared tensor goes, and which of its bytes were claimed by a write. */
interface Slot {
  readonly declaration: TensorDeclaration;
  readonly byteLength: number;
  /** First byte, counted from the end of the header. */
  offset: number;
  /** Disjoint [begin, end) ranges within the tensor, sorted. */
  written: [number, number][];
}

/**
 * Writes a safetensors file whose tensors are declared first and whose bytes then come in any order, a tensor
 * at once or in parts, so that no more than one part is in memory.
 *
 * The file becomes valid only in `finish()`: until then its header length is 0, which every reader refuses, so
 * that a killed run cannot leave a file that looks whole and has holes.
 */
export class SafetensorsWriter {
  readonly path: string;
  /** The size of the finished file. */
  readonly byteLength: number;
  readonly #handle: FileHandle;
  readonly #slots: ReadonlyMap<string, Slot>;
  readonly #dataStart: number;
  /** Set once a write failed: the file can no longer be finished. */
  #failure: unknown;
  #state: 'open' | 'finished' | 'aborted' = 'open';
  readonly #inFlight = new Set<Promise<void>>();

  private constructor(path: string, handle: FileHandle, slots: ReadonlyMap<string, Slot>, dataStart: number) {
    this.path = path;
    this.#handle = handle;
    this.#slots = slots;
    this.#dataStart = dataStart;
    this.byteLength = dataStart + sum([...slots.values()].map((slot) => slot.byteLength));
  }

  /**
   * Creates (or truncates) the file and writes its header, tensors in declared order. The bytes lie in
   * declared order too, but wider dtypes first, so that each tensor is aligned as in the reference implementation.
   *
   * @throws INVALID_ARGUMENT for a name twice, an unknown dtype or a shape that is none; IO.
   */
  static async create(
    path: string,
    declarations: Iterable<TensorDeclaration>,
    metadata: Readonly<Record<string, string>> = { format: 'pt' },
  ): Promise<SafetensorsWriter> {
    const slots = layOut(declarations);
    const header = encodeHeader(slots, metadata);
    const handle = await attempt('create', path, () => open(path, 'w'));
    const writer = new SafetensorsWriter(path, handle, slots, LENGTH_BYTES + header.byteLength);
    try {
      await writeFully(handle, path, new Uint8Array(LENGTH_BYTES), 0);
      await writeFully(handle, path, header, LENGTH_BYTES);
    } catch (error) {
      await writer.abort();
      throw error;
    }
    return writer;
  }

  /**
   * Writes bytes of a declared tensor, from its byte `byteOffset` on. Calls may overlap in time; `bytes` must
   * not change before the promise settles.
   *
   * @throws INVALID_ARGUMENT for an undeclared name, bytes past the tensor's end or bytes written before; IO.
   */
  async write(name: string, bytes: Uint8Array, byteOffset = 0): Promise<void> {
    this.#checkOpen();
    const slot = this.#slots.get(name);
    if (slot === undefined) throw expected('the name of a declared tensor', 'name', name);
    claim(slot, byteOffset, bytes);
    const writing = writeFully(this.#handle, this.path, bytes, this.#dataStart + slot.offset + byteOffset);
    this.#inFlight.add(writing);
    try {
      await writing;
    } catch (error) {
      this.#failure ??= error;
      throw error;
    } finally {
      this.#inFlight.delete(writing);
    }
  }

  /**
   * Checks that every byte of every tensor was written, makes the file valid, syncs it to disk and closes it.
   *
   * @throws INVALID_ARGUMENT naming a tensor that lacks bytes (the file stays open for them); IO.
   */
  async finish(): Promise<void> {
    this.#checkOpen();
    for (const slot of this.#slots.values()) checkComplete(slot);
    this.#state = 'finished';
    await Promise.allSettled(this.#inFlight);
    try {
      if (this.#failure !== undefined) throw this.#failure;
      // The data must be on the disk before the length that vouches for it.
      await this.#sync();
      await writeFully(this.#handle, this.path, encodeLength(this.#dataStart - LENGTH_BYTES), 0);
      await this.#sync();
    } catch (error) {
      await this.#discard();
      throw error;
    }
    await attempt('close', this.path, () => this.#handle.close());
  }

  /** Closes and deletes the unfinished file. After `finish()` or another `abort()` it does nothing. */
  async abort(): Promise<void> {
    if (this.#state !== 'open') return;
    this.#state = 'aborted';
    await Promise.allSettled(this.#inFlight);
    await this.#discard();
  }

  /** Deletes the file unless it was finished. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.abort();
  }

  #checkOpen(): void {
    if (this.#state !== 'open')
      throw new MolaeError('DISPOSED', `The writer of ${this.path} is ${this.#state}`);
    if (this.#failure !== undefined) {
      throw new MolaeError('IO', `${this.path} cannot be completed: an earlier write failed`, {
        cause: this.#failure,
      });
    }
  }

  #sync(): Promise<void> {
    return attempt('sync', this.path, () => this.#handle.sync());
  }

  /** Best effort: this runs when something has failed already, and that is the error to report. */
  async #discard(): Promise<void> {
    // Someone may have pointed us at a device such as /dev/full: that is not ours to delete.
    const isRegular = await this.#handle.stat().then(
      (stats) => stats.isFile(),
      () => false,
    );
    await this.#handle.close().catch(() => {});
    if (isRegular) await unlink(this.path).catch(() => {});
  }
}

function layOut(declarations: Iterable<TensorDeclaration>): Map<string, Slot> {
  const slots = new Map<string, Slot>();
  for (const declaration of declarations) {
    const { name } = declaration;
    if (typeof name !== 'string' || name === METADATA_KEY || !isEncodable(name)) {
      throw expected(`a tensor name in valid Unicode other than ${METADATA_KEY}`, 'name', name);
    }
    if (slots.has(name)) throw expected('names that differ', 'tensors', name);
    slots.set(name, { declaration, byteLength: checkedBytes(declaration), offset: 0, written: [] });
  }
  let end = 0;
  for (const slot of [...slots.values()].sort((a, b) => itemBytes(b) - itemBytes(a))) {
    slot.offset = end;
    end += slot.byteLength;
    if (end > Number.MAX_SAFE_INTEGER) throw expected('at most 2^53 bytes of tensors', 'tensors', end);
  }
  return slots;
}

function itemBytes(slot: Slot): number {
  return DTYPE_BYTES[slot.declaration.dtype];
}

function checkedBytes({ name, dtype, shape }: TensorDeclaration): number {
  if (!isDtype(dtype)) throw expected('a safetensors dtype', `dtype of ${name}`, dtype);
  if (!isShape(shape)) throw expected('non-negative integers', `shape of ${name}`, shape);
  const bytes = tensorBytes(dtype, shape);
  if (bytes === undefined) throw expected('a size below 2^53 bytes', `shape of ${name}`, shape);
  return bytes;
}

/** Built by hand: a JavaScript object would reorder names that look like integers, and lose `__proto__`. */
function encodeHeader(
  slots: ReadonlyMap<string, Slot>,
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const fields = [`${JSON.stringify(METADATA_KEY)}:${encodeMetadata(metadata)}`];
  for (const [name, { declaration, offset, byteLength }] of slots) {
    const { dtype, shape } = declaration;
    fields.push(
      `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [offset, offset + byteLength] })}`,
    );
  }
  const json = new TextEncoder().encode(`{${fields.join(',')}}`);
  // The reference implementation pads with spaces, so that the data are aligned to 8 bytes.
  const header = new Uint8Array(Math.ceil(json.byteLength / 8) * 8).fill(0x20);
  header.set(json);
  if (header.byteLength > MAX_HEADER_BYTES) {
    throw expected(
      `tensors whose header has at most ${MAX_HEADER_BYTES} bytes`,
      'tensors',
      header.byteLength,
    );
  }
  return header;
}

function encodeMetadata(metadata: Readonly<Record<string, string>>): string {
  for (const [key, text] of Object.entries(metadata)) {
    if (typeof text !== 'string' || !isEncodable(key) || !isEncodable(text)) {
      throw expected('valid Unicode text', `metadata ${key}`, text);
    }
  }
  return JSON.stringify(metadata);
}

function encodeLength(length: number): Uint8Array {
  const bytes = new Uint8Array(LENGTH_BYTES);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  return bytes;
}

/** Books a range of a tensor before it is written, so that two writes at the same time cannot both have it. */
function claim(slot: Slot, begin: number, bytes: Uint8Array): void {
  const { name } = slot.declaration;
  if (!(bytes instanceof Uint8Array)) throw expected('a Uint8Array', `bytes of ${name}`, bytes);
  if (!Number.isSafeInteger(begin) || begin < 0)
    throw expected('a non-negative integer', 'byteOffset', begin);
  const end = begin + bytes.byteLength;
  if (end > slot.byteLength) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      `Tensor ${quote(name)} has ${slot.byteLength} bytes; bytes ${begin} to ${end} are past its end`,
    );
  }
  if (begin === end) return;
  if (slot.written.some(([from, to]) => begin < to && from < end)) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      `Bytes ${begin} to ${end} of tensor ${quote(name)} were written before`,
    );
  }
  slot.written = mergeRanges([...slot.written, [begin, end]]);
}

function mergeRanges(ranges: [number, number][]): [number, number][] {
  const merged: [number, number][] = [];
  for (const [begin, end] of ranges.sort(([a], [b]) => a - b)) {
    const last = merged.at(-1);
    if (last !== undefined && last[1] === begin) last[1] = end;
    else merged.push([begin, end]);
  }
  return merged;
}

function checkComplete({ declaration, byteLength, written }: Slot): void {
  const done = sum(written.map(([begin, end]) => end - begin));
  if (done !== byteLength) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      `Tensor ${quote(declaration.name)} has ${byteLength} bytes, but only ${done} were written`,
    );
  }
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
