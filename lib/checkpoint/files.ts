import { type FileHandle, open, stat } from 'node:fs/promises';
import { attempt, ioError, systemCode } from '../files.ts';
import { isJsonObject, type JsonObject, parseStrictJson } from './json.ts';
import { badCheckpoint, quote } from './problems.ts';

/** One system call moves at most this much: Linux stops at 2 GiB, and a smaller step frees its thread sooner. */
const MAX_TRANSFER_BYTES = 256 * 1024 * 1024;

/** Whether there is a regular file (or a symbolic link to one) at `path`. */
export async function isFile(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isFile();
  } catch (cause) {
    const code = systemCode(cause);
    if (code === 'ENOENT' || code === 'ENOTDIR') return false;
    throw ioError('look at', path, cause);
  }
}

/**
 * Opens a regular file for reading. Anything else (a folder, a pipe that would block for ever) is refused.
 *
 * @throws BAD_CHECKPOINT when the file is missing or not regular, IO when it cannot be opened.
 */
export async function openForReading(path: string): Promise<{ handle: FileHandle; size: number }> {
  if (!(await isFile(path))) throw badCheckpoint(path, 'there is no such file');
  const handle = await attempt('open', path, () => open(path, 'r'));
  try {
    return { handle, size: (await handle.stat()).size };
  } catch (cause) {
    await handle.close();
    throw ioError('look at', path, cause);
  }
}

/**
 * Fills `into` from `position` on, over as many calls as it takes.
 *
 * @throws BAD_CHECKPOINT when the file ends first (it shrank after it was opened), IO when a read fails.
 */
export async function readFully(
  handle: Pick<FileHandle, 'read'>,
  path: string,
  into: Uint8Array,
  position: number,
): Promise<void> {
  let done = 0;
  while (done < into.byteLength) {
    const length = Math.min(into.byteLength - done, MAX_TRANSFER_BYTES);
    const { bytesRead } = await attempt('read', path, () => handle.read(into, done, length, position + done));
    if (bytesRead === 0) {
      throw badCheckpoint(
        path,
        `the file ends at byte ${position + done}, but ${into.byteLength} bytes from ${position} on were expected: it shrank while it was open`,
      );
    }
    done += bytesRead;
  }
}

/**
 * Writes all of `bytes` at `position`, over as many calls as it takes.
 *
 * @throws IO with the path and the system's error (a full disk, for one) as the cause.
 */
export async function writeFully(
  handle: Pick<FileHandle, 'write'>,
  path: string,
  bytes: Uint8Array,
  position: number,
): Promise<void> {
  let done = 0;
  while (done < bytes.byteLength) {
    const length = Math.min(bytes.byteLength - done, MAX_TRANSFER_BYTES);
    const { bytesWritten } = await attempt('write', path, () =>
      handle.write(bytes, done, length, position + done),
    );
    if (bytesWritten === 0) throw ioError('write', path, new Error('the system accepted no more bytes'));
    done += bytesWritten;
  }
}

/**
 * Reads a whole file that ought to be small.
 *
 * @throws BAD_CHECKPOINT when it is missing or larger than `limit` bytes, IO when it cannot be read.
 */
export async function readSmallFile(path: string, limit: number): Promise<Uint8Array> {
  const { handle, size } = await openForReading(path);
  try {
    if (size > limit)
      throw badCheckpoint(path, `the file has ${size} bytes; at most ${limit} make sense for it`);
    const bytes = new Uint8Array(size);
    await readFully(handle, path, bytes, 0);
    return bytes;
  } finally {
    await handle.close();
  }
}

/**
 * Reads a small file that holds a JSON object.
 *
 * @throws BAD_CHECKPOINT as `readSmallFile` and `parseStrictJson`, and for other JSON; IO.
 */
export async function readJsonObject(path: string, limit: number): Promise<JsonObject> {
  const value = parseStrictJson(await readSmallFile(path, limit), path);
  if (!isJsonObject(value)) throw badCheckpoint(path, `is ${quote(value)}, not a JSON object`);
  return value;
}
