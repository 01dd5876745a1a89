import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { ioError, systemCode } from '../files.ts';
import { isFile, readSmallFile } from './files.ts';
import { isJsonObject, parseStrictJson } from './json.ts';
import { badCheckpoint, quote } from './problems.ts';
import type { SafetensorsDtype } from './safetensors/dtype.ts';
import type { TensorEntry } from './safetensors/header.ts';
import { FilePool } from './safetensors/pool.ts';

export const INDEX_FILE = 'model.safetensors.index.json';
const SINGLE_FILE = 'model.safetensors';

const MAX_INDEX_BYTES = 100_000_000;
const MAX_OPEN_FILES = 64;
/** Headers read at a time when a checkpoint is opened: enough to hide latency, few enough to spare the libuv pool. */
const HEADERS_AT_A_TIME = 4;

/** One tensor of a checkpoint. */
export interface ShardedTensor {
  readonly dtype: SafetensorsDtype;
  /** Sizes, outermost first. */
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** The name of the file that holds it, inside the checkpoint's folder. */
  readonly shard: string;
}

/**
 * The tensors of a checkpoint folder, whatever number of safetensors files they are spread over. Opening it reads
 * the headers only; files are opened when they are needed, at most 64 at a time.
 */
export class Shards {
  readonly folder: string;
  /** All tensors: shard by shard, in the order of their bytes. */
  readonly tensors: ReadonlyMap<string, ShardedTensor>;
  /** The files' names, sorted. */
  readonly files: readonly string[];
  /** Shard → tensors in it that the index does not place there; nothing reads them. */
  readonly leftovers: ReadonlyMap<string, readonly string[]>;
  readonly #pool: FilePool;

  private constructor(folder: string, { tensors, leftovers }: Contents, files: string[], pool: FilePool) {
    this.folder = folder;
    this.tensors = tensors;
    this.leftovers = leftovers;
    this.files = files;
    this.#pool = pool;
  }

  /**
   * Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names, or the only
   * `*.safetensors` file of the folder (in this order, as transformers does), and holds the index against the shards.
   * What a shard holds beyond the index is left alone, as transformers does: tools that edit an index forget the files.
   *
   * @throws BAD_CHECKPOINT when a shard is missing or not sound, or lacks a tensor that the index places in it; IO.
   */
  static async open(folder: string, { maxOpenFiles = MAX_OPEN_FILES } = {}): Promise<Shards> {
    const weightMap = (await isFile(join(folder, SINGLE_FILE))) ? undefined : await readIndex(folder);
    const files =
      weightMap === undefined ? [await findSingleFile(folder)] : [...new Set(weightMap.values())].sort();
    const pool = new FilePool(maxOpenFiles);
    try {
      const headers = await readHeaders(folder, files, pool);
      return new Shards(folder, holdAgainstIndex(folder, weightMap, headers), files, pool);
    } catch (error) {
      await pool.close();
      throw error;
    }
  }

  /**
   * Reads a whole tensor: its bytes, row-major and little-endian.
   *
   * @param into memory of at least `byteLength` bytes to fill instead of fresh memory.
   * @returns exactly the tensor's bytes; a view of the start of `into` where that was given.
   * @throws BAD_CHECKPOINT for an unknown name or a file that changed, INVALID_ARGUMENT when `into` is too
   *   small, OUT_OF_MEMORY, IO, DISPOSED after `close()`.
   */
  async read(name: string, into?: Uint8Array): Promise<Uint8Array> {
    return this.readRange(name, 0, this.tensor(name).byteLength, into);
  }

  /** Reads `byteLength` bytes of a tensor from its byte `byteOffset` on. For the rest see {@link read}. */
  async readRange(
    name: string,
    byteOffset: number,
    byteLength: number,
    into?: Uint8Array,
  ): Promise<Uint8Array> {
    const tensor = this.tensor(name);
    return this.#pool.use(join(this.folder, tensor.shard), (file) => {
      const now = file.tensors.get(name);
      if (now === undefined || now.dtype !== tensor.dtype || `${now.shape}` !== `${tensor.shape}`) {
        throw badCheckpoint(
          file.path,
          `tensor ${quote(name)} is not what it was when the checkpoint was opened`,
        );
      }
      return file.readRange(name, byteOffset, byteLength, into);
    });
  }

  /**
   * What is known of a tensor.
   *
   * @throws BAD_CHECKPOINT when there is none of this name.
   */
  tensor(name: string): ShardedTensor {
    const tensor = this.tensors.get(name);
    if (tensor === undefined) throw badCheckpoint(this.folder, `there is no tensor ${quote(name)}`);
    return tensor;
  }

  /** Closes all files. Reads after it are refused with DISPOSED. Closing twice does nothing more. */
  close(): Promise<void> {
    return this.#pool.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Tensor name → shard name, or undefined when the folder has no index. */
async function readIndex(folder: string): Promise<ReadonlyMap<string, string> | undefined> {
  const path = join(folder, INDEX_FILE);
  if (!(await isFile(path))) return undefined;
  const index = parseStrictJson(await readSmallFile(path, MAX_INDEX_BYTES), path);
  const entries = isJsonObject(index) ? index.weight_map : undefined;
  if (!isJsonObject(entries)) throw badCheckpoint(path, `weight_map is ${quote(entries)}, not an object`);
  const weightMap = new Map<string, string>();
  for (const [name, shard] of Object.entries(entries)) {
    if (!isPlainFileName(shard)) {
      throw badCheckpoint(
        path,
        `weight_map: ${quote(name)} is ${quote(shard)}, not the name of a file in this folder`,
      );
    }
    weightMap.set(name, shard);
  }
  if (weightMap.size === 0) throw badCheckpoint(path, 'weight_map is empty');
  return weightMap;
}

/**
 * A name that cannot leave the folder by itself. The file may still be a symbolic link to elsewhere: that is how
 * Hugging Face's cache keeps every snapshot, and only who owns the folder can make one.
 */
function isPlainFileName(value: unknown): value is string {
  return (
    typeof value === 'string' && value !== '' && value !== '.' && value !== '..' && !/[/\\:\0]/.test(value)
  );
}

async function findSingleFile(folder: string): Promise<string> {
  let names: string[];
  try {
    names = await readdir(folder);
  } catch (cause) {
    const code = systemCode(cause);
    if (code === 'ENOENT') throw badCheckpoint(folder, 'there is no such folder', cause);
    if (code === 'ENOTDIR') throw badCheckpoint(folder, 'not a folder', cause);
    throw ioError('list', folder, cause);
  }
  if (names.includes(SINGLE_FILE)) return SINGLE_FILE;
  const candidates = names.filter((name) => name.endsWith('.safetensors')).sort();
  const [only] = candidates;
  if (only !== undefined && candidates.length === 1) return only;
  throw badCheckpoint(
    folder,
    candidates.length === 0
      ? `found neither ${SINGLE_FILE} nor ${INDEX_FILE}; molae reads safetensors checkpoints only`
      : `found ${candidates.length} safetensors files but no ${INDEX_FILE} to say what they hold`,
  );
}

/** Shard → its tensors, shards sorted by name. */
type Headers = ReadonlyMap<string, ReadonlyMap<string, TensorEntry>>;

async function readHeaders(folder: string, files: readonly string[], pool: FilePool): Promise<Headers> {
  const headers = new Map<string, ReadonlyMap<string, TensorEntry>>();
  for (let start = 0; start < files.length; start += HEADERS_AT_A_TIME) {
    const batch = files.slice(start, start + HEADERS_AT_A_TIME);
    const read = await Promise.all(
      batch.map((shard) => pool.use(join(folder, shard), async (file) => file.tensors)),
    );
    batch.forEach((shard, i) => {
      headers.set(shard, read[i] as ReadonlyMap<string, TensorEntry>);
    });
  }
  return headers;
}

type Contents = Pick<Shards, 'tensors' | 'leftovers'>;

/** `weightMap` undefined: one file without an index, which holds what it holds. */
function holdAgainstIndex(
  folder: string,
  weightMap: ReadonlyMap<string, string> | undefined,
  headers: Headers,
): Contents {
  const tensors = new Map<string, ShardedTensor>();
  const leftovers = new Map<string, string[]>();
  for (const [shard, entries] of headers) {
    const left: string[] = [];
    for (const [name, { dtype, shape, byteLength }] of entries) {
      if (weightMap === undefined || weightMap.get(name) === shard) {
        tensors.set(name, { dtype, shape, byteLength, shard });
      } else {
        left.push(name);
      }
    }
    if (left.length > 0) leftovers.set(shard, left);
  }
  for (const [name, shard] of weightMap ?? []) {
    if (!tensors.has(name)) {
      throw badCheckpoint(
        join(folder, shard),
        `lacks tensor ${quote(name)}, which ${INDEX_FILE} places in it`,
      );
    }
  }
  return { tensors, leftovers };
}
