import { elementBytes, type FloatDType } from '../dtype.ts';
import { callNative, native } from '../native.ts';
import { badCheckpoint, quote, unsupportedCheckpoint } from './problems.ts';
import { type BlockQuantization, scaleTensorName } from './quantization.ts';
import { isStoredFloat, tensorDType } from './safetensors/dtype.ts';
import type { Shards } from './shards.ts';

/** What quantized weights are read as: it holds their few bits and the scale's exponent. */
const EXPANDED = 'bf16';
const EXPANDED_BYTES = elementBytes(EXPANDED);

/** Bytes of a part of a tensor, and where in it they belong. */
export interface TensorPiece {
  readonly bytes: Uint8Array;
  readonly byteOffset: number;
}

/** The floating tensors of a checkpoint as numbers: as they are stored, block-quantized ones expanded to bf16. */
export class Weights {
  readonly #shards: Shards;
  readonly #quantization: BlockQuantization | undefined;
  /** Those of the tensor read last: it is read in parts. */
  #scales: { readonly name: string; readonly values: Promise<Float32Array> } | undefined;

  /** @internal A checkpoint has them. */
  constructor(shards: Shards, quantization: BlockQuantization | undefined) {
    this.#shards = shards;
    this.#quantization = quantization;
  }

  /** The tensor with the scales of this one, undefined for one that is not quantized. */
  scalesOf(name: string): string | undefined {
    const { dtype } = this.#shards.tensor(name);
    return dtype === 'F8_E4M3' && this.#quantization !== undefined ? scaleTensorName(name) : undefined;
  }

  /**
   * The dtype that a tensor is read in.
   *
   * @throws UNSUPPORTED_CHECKPOINT for one that is not floating or quantized in another way, BAD_CHECKPOINT where the
   *   scales are missing or of another shape.
   */
  dtype(name: string): FloatDType {
    const { dtype, shape } = this.#shards.tensor(name);
    if (isStoredFloat(dtype)) return tensorDType(dtype);
    const scales = this.scalesOf(name);
    if (scales === undefined || this.#quantization === undefined || shape.length !== 2) {
      throw unsupportedCheckpoint(
        this.#shards.folder,
        `tensor ${quote(name)} has dtype ${dtype}; supported are F64, F32, F16, BF16, and matrices in F8_E4M3 with block scales`,
      );
    }
    const { blockRows, blockCols } = this.#quantization;
    const [rows, cols] = shape as [number, number];
    const wanted = [Math.ceil(rows / blockRows), Math.ceil(cols / blockCols)];
    const found = this.#shards.tensor(scales);
    if (`${found.shape}` !== `${wanted}`) {
      throw badCheckpoint(
        this.#shards.folder,
        `tensor ${quote(scales)} has shape ${quote(found.shape)}; blocks of ${blockRows} × ${blockCols} need ${quote(wanted)}`,
      );
    }
    if (found.dtype !== 'F32' && found.dtype !== 'BF16') {
      throw unsupportedCheckpoint(
        this.#shards.folder,
        `tensor ${quote(scales)} has dtype ${found.dtype}; supported are F32, BF16`,
      );
    }
    return EXPANDED;
  }

  /** The bytes that a tensor has in the dtype it is read in. */
  byteLength(name: string): number {
    const { byteLength } = this.#shards.tensor(name);
    return this.scalesOf(name) === undefined ? byteLength : byteLength * EXPANDED_BYTES;
  }

  /**
   * Reads a whole tensor, row-major and little-endian.
   *
   * @param into memory to fill instead of fresh memory; a view of its start is returned.
   */
  async read(name: string, into?: Uint8Array): Promise<Uint8Array> {
    return this.readRange(name, 0, this.byteLength(name), into);
  }

  /** Reads a part, in bytes of the dtype it is read in. Of a quantized tensor that is whole rows. */
  async readRange(
    name: string,
    byteOffset: number,
    byteLength: number,
    into?: Uint8Array,
  ): Promise<Uint8Array> {
    const scales = this.scalesOf(name);
    if (scales === undefined) return this.#shards.readRange(name, byteOffset, byteLength, into);
    const rowBytes = (this.#shards.tensor(name).shape[1] as number) * EXPANDED_BYTES;
    const target = (into ?? new Uint8Array(byteLength)).subarray(0, byteLength);
    if (rowBytes === 0) return target;
    // A block of rows at a time: each is expanded on this thread.
    const { blockRows } = this.#quantization as BlockQuantization;
    const end = (byteOffset + byteLength) / rowBytes;
    for (let row = byteOffset / rowBytes; row < end; row += blockRows) {
      const rows = Math.min(blockRows, end - row);
      const begin = row * rowBytes - byteOffset;
      await this.#readRows(name, scales, row, rows, target.subarray(begin, begin + rows * rowBytes));
    }
    return target;
  }

  /** A tensor in parts of about `maxBytes` (at least a row): none outlives the next. */
  async *pieces(name: string, maxBytes: number): AsyncGenerator<TensorPiece> {
    const byteLength = this.byteLength(name);
    let step = maxBytes;
    if (this.scalesOf(name) !== undefined) {
      const rowBytes = (this.#shards.tensor(name).shape[1] as number) * EXPANDED_BYTES;
      step = rowBytes * Math.max(1, Math.floor(maxBytes / Math.max(rowBytes, 1)));
    }
    const buffer = new Uint8Array(Math.min(step, byteLength));
    for (let byteOffset = 0; byteOffset < byteLength; byteOffset += step) {
      const length = Math.min(step, byteLength - byteOffset);
      yield { bytes: await this.readRange(name, byteOffset, length, buffer), byteOffset };
    }
  }

  async #readRows(
    name: string,
    scaleName: string,
    row: number,
    rows: number,
    target: Uint8Array,
  ): Promise<void> {
    const { blockRows, blockCols } = this.#quantization as BlockQuantization;
    const cols = this.#shards.tensor(name).shape[1] as number;
    const scales = await this.#readScales(scaleName);
    await this.#shards.readRange(name, row * cols, rows * cols, target.subarray(rows * cols));
    callNative(() => native().expandE4m3(target, row, rows, cols, scales, blockRows, blockCols));
  }

  #readScales(name: string): Promise<Float32Array> {
    if (this.#scales?.name !== name) {
      const values = this.#loadScales(name);
      values.catch(() => {}); // reported by who awaits it
      this.#scales = { name, values };
    }
    return this.#scales.values;
  }

  async #loadScales(name: string): Promise<Float32Array> {
    const bytes = (await this.#shards.read(name)).slice();
    if (this.#shards.tensor(name).dtype === 'F32') return new Float32Array(bytes.buffer);
    const halves = new Uint16Array(bytes.buffer);
    const widened = Uint32Array.from(halves, (half) => half << 16);
    return new Float32Array(widened.buffer);
  }
}
