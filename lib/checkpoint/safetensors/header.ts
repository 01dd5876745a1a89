import { refuseLfsPointer } from '../git-lfs.ts';
import { isJsonObject, parseStrictJson } from '../json.ts';
import { badCheckpoint, quote } from '../problems.ts';
import { DTYPE_BYTES, isDtype, isEncodable, isShape, type SafetensorsDtype, tensorBytes } from './dtype.ts';

/** The limit of the reference implementation (`MAX_HEADER_SIZE` in huggingface/safetensors). */
export const MAX_HEADER_BYTES = 100_000_000;

/** Before the header stands its length, 8 bytes, little-endian. */
export const LENGTH_BYTES = 8;

/** The key for free-form text in the header; no tensor may have this name. */
export const METADATA_KEY = '__metadata__';

/** A header is an object of objects of arrays; what tools add to it is hardly deeper. */
const MAX_HEADER_DEPTH = 16;

/** One tensor of a file. */
export interface TensorEntry {
  readonly dtype: SafetensorsDtype;
  /** Sizes, outermost first; empty for a scalar. */
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** Position of the first byte in the file. */
  readonly position: number;
}

export interface SafetensorsHeader {
  /** The tensors in the order of their bytes in the file. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly metadata: ReadonlyMap<string, string>;
}

/**
 * The length of the header in bytes, from the first 8 bytes of a file of `fileSize` bytes.
 *
 * @throws BAD_CHECKPOINT when the file is too short for it, the length passes 100 MB, or it is Git LFS's pointer to the file.
 */
export function parseHeaderLength(prefix: Uint8Array, fileSize: number, file: string): number {
  if (prefix.byteLength < LENGTH_BYTES) {
    throw badCheckpoint(
      file,
      `a safetensors file starts with ${LENGTH_BYTES} bytes of length; this one has ${fileSize}`,
    );
  }
  refuseLfsPointer(prefix, file);
  const view = new DataView(prefix.buffer, prefix.byteOffset, LENGTH_BYTES);
  const length = view.getBigUint64(0, true);
  if (length === 0n)
    throw badCheckpoint(file, 'the header length is 0: the file is empty or was never finished');
  if (length > MAX_HEADER_BYTES) {
    throw badCheckpoint(file, `the header length is ${length} bytes; the format allows ${MAX_HEADER_BYTES}`);
  }
  if (Number(length) + LENGTH_BYTES > fileSize) {
    throw badCheckpoint(
      file,
      `the header length is ${length} bytes, but the file has only ${fileSize}: it was cut off`,
    );
  }
  return Number(length);
}

/**
 * Parses a header that may have been written by an enemy. As strict as the reference implementation (every
 * byte after the header belongs to exactly one tensor), and stricter in one point: no key may occur twice.
 *
 * @param header the bytes of the header alone, without the length before it.
 * @throws BAD_CHECKPOINT naming the file, the tensor, the field and its value.
 */
export function parseHeader(header: Uint8Array, fileSize: number, file: string): SafetensorsHeader {
  if (header[0] !== 0x7b) throw badCheckpoint(file, 'the header does not begin with "{"');
  const root = parseStrictJson(header, file, MAX_HEADER_DEPTH);
  if (!isJsonObject(root)) throw badCheckpoint(file, 'the header is not a JSON object');

  const dataStart = LENGTH_BYTES + header.byteLength;
  const dataBytes = fileSize - dataStart;
  let metadata: ReadonlyMap<string, string> = new Map();
  const entries: [string, TensorEntry][] = [];
  for (const [name, value] of Object.entries(root)) {
    if (name === METADATA_KEY) metadata = parseMetadata(value, file);
    else entries.push([name, parseEntry(name, value, dataStart, dataBytes, file)]);
  }
  entries.sort(([, a], [, b]) => a.position - b.position || a.byteLength - b.byteLength);
  checkCoverage(entries, dataStart, fileSize, file);
  return { tensors: new Map(entries), metadata };
}

function parseMetadata(value: unknown, file: string): ReadonlyMap<string, string> {
  if (!isJsonObject(value))
    throw badCheckpoint(file, `${METADATA_KEY} is ${quote(value)}, not an object of strings`);
  const metadata = new Map<string, string>();
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string') {
      throw badCheckpoint(file, `${METADATA_KEY}: ${quote(key)} is ${quote(text)}, not a string`);
    }
    metadata.set(key, text);
  }
  return metadata;
}

function parseEntry(
  name: string,
  value: unknown,
  dataStart: number,
  dataBytes: number,
  file: string,
): TensorEntry {
  const bad = (problem: string) => badCheckpoint(file, `tensor ${quote(name)}: ${problem}`);
  if (!isEncodable(name)) throw bad('the name is not valid Unicode');
  if (!isJsonObject(value)) throw bad(`described by ${quote(value)}, not by an object`);
  const { dtype, shape, data_offsets: offsets } = value;
  if (!isDtype(dtype)) {
    throw bad(`dtype is ${quote(dtype)}; known are ${Object.keys(DTYPE_BYTES).join(', ')}`);
  }
  if (!isShape(shape)) throw bad(`shape is ${quote(shape)}, not an array of non-negative integers`);
  const byteLength = tensorBytes(dtype, shape);
  if (byteLength === undefined) throw bad(`shape ${quote(shape)} has more than 2^53 bytes`);
  if (!isShape(offsets) || offsets.length !== 2) {
    throw bad(`data_offsets is ${quote(offsets)}, not two non-negative integers`);
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end) throw bad(`data_offsets ${quote(offsets)} end before they begin`);
  if (end > dataBytes) {
    throw bad(
      `data_offsets ${quote(offsets)} pass the end of the file, which has ${dataBytes} bytes of data`,
    );
  }
  if (end - begin !== byteLength) {
    throw bad(
      `data_offsets ${quote(offsets)} span ${end - begin} bytes, but shape ${quote(shape)} of ${dtype} needs ${byteLength}`,
    );
  }
  return { dtype, shape, byteLength, position: dataStart + begin };
}

/** Every byte of data belongs to exactly one tensor. `entries` are sorted by position. */
function checkCoverage(
  entries: readonly [string, TensorEntry][],
  dataStart: number,
  fileSize: number,
  file: string,
): void {
  let covered = dataStart;
  let previous = 'the header';
  for (const [name, { position, byteLength }] of entries) {
    if (position < covered) {
      throw badCheckpoint(
        file,
        `tensor ${quote(name)}: data_offsets begin at ${position - dataStart}, inside ${previous}, which ends at ${covered - dataStart}`,
      );
    }
    if (position > covered) {
      throw badCheckpoint(
        file,
        `tensor ${quote(name)}: data_offsets leave a hole of ${position - covered} bytes after ${previous}`,
      );
    }
    covered = position + byteLength;
    previous = `tensor ${quote(name)}`;
  }
  if (covered !== fileSize) {
    throw badCheckpoint(file, `${fileSize - covered} bytes after ${previous} belong to no tensor`);
  }
}
