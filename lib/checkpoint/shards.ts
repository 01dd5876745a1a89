import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { ioError, isFile, readSmallFile, systemCode } from './files.ts';
import { isJsonObject, parseStrictJson } from './json.ts';
import { badCheckpoint, quote } from './problems.ts';
import type { SafetensorsDtype } from './safetensors/dtype.ts';
import { FilePool } from './safetensors/pool.ts';

export const INDEX_FILE = 'model.safetensors.index.json';
export const SINGLE_FILE = 'model.safetensors';

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
  readonly #pool: FilePool;

  private constructor(
    folder: string,
    tensors: ReadonlyMap<string, ShardedTensor>,
    files: string[],
    pool: FilePool,
  ) {
    this.folder = folder;
    this.tensors = tensors;
    this.files = files;
    this.#pool = pool;
  }

  /**
   * Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names, or the only
   * `*.safetensors` file of the folder (in this order, as transformers does), and holds the index against the shards.
   *
   * @throws BAD_CHECKPOINT when a shard is missing or not sound, or index and shards differ; IO.
   */
  static async open(folder: string, { maxOpenFiles = MAX_OPEN_FILES } = {}): Promise<Shards> {
    const weightMap = (await isFile(join(folder, SINGLE_FILE))) ? undefined : await readIndex(folder);
    const files =
      weightMap === undefined ? [await findSingleFile(folder)] : [...new Set(weightMap.values())].sort();
    const pool = new FilePool(maxOpenFiles);
    try {
      const tensors = await readHeaders(folder, files, pool);
      if (weightMap !== undefined) checkIndex(folder, weightMap, tensors);
      return new Shards(folder, tensors.first, files, pool);
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

interface ShardContents {
  /** The first occurrence of each tensor. */
  readonly first: Map<string, ShardedTensor>;
  /** Which names each shard has. */
  readonly namesOf: ReadonlyMap<string, readonly string[]>;
}

async function readHeaders(folder: string, files: readonly string[], pool: FilePool): Promise<ShardContents> {
  const first = new Map<string, ShardedTensor>();
  const namesOf = new Map<string, readonly string[]>();
  for (let start = 0; start < files.length; start += HEADERS_AT_A_TIME) {
    const batch = files.slice(start, start + HEADERS_AT_A_TIME);
    const headers = await Promise.all(
      batch.map((shard) => pool.use(join(folder, shard), async (file) => ({ shard, tensors: file.tensors }))),
    );
    for (const { shard, tensors } of headers) {
      namesOf.set(shard, [...tensors.keys()]);
      for (const [name, { dtype, shape, byteLength }] of tensors) {
        if (!first.has(name)) first.set(name, { dtype, shape, byteLength, shard });
      }
    }
  }
  return { first, namesOf };
}

function checkIndex(
  folder: string,
  weightMap: ReadonlyMap<string, string>,
  { namesOf }: ShardContents,
): void {
  for (const [shard, names] of namesOf) {
    for (const name of names) {
      const indexed = weightMap.get(name);
      if (indexed === shard) continue;
      const where = indexed === undefined ? 'does not name it' : `says it is in ${indexed}`;
      throw badCheckpoint(join(folder, shard), `holds tensor ${quote(name)}, but ${INDEX_FILE} ${where}`);
    }
  }
  // Now every tensor found is in the right shard; what is still unaccounted for exists in the index alone.
  const found = new Set([...namesOf.values()].flat());
  for (const [name, shard] of weightMap) {
    if (!found.has(name)) {
      throw badCheckpoint(
        join(folder, shard),
        `lacks tensor ${quote(name)}, which ${INDEX_FILE} places in it`,
      );
    }
  }
}
