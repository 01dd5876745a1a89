/**
 * What went wrong, for programs. The message is for people: it names the offending argument, tensor or
 * file, its value, and what was expected.
 */
export type MolaeErrorCode =
  /** A wrong type or value of an argument or option. */
  | 'INVALID_ARGUMENT'
  /** Shapes that do not fit each other. */
  | 'SHAPE_MISMATCH'
  /** A dtype that an operation does not take, or dtypes that do not fit each other. */
  | 'DTYPE_MISMATCH'
  /** A tensor or layer that lives on another device. */
  | 'DEVICE_MISMATCH'
  /** Use of a tensor, layer or device after `dispose()`, or of a model after `close()`. */
  | 'DISPOSED'
  /** NaN or infinity where only finite numbers make sense. */
  | 'NON_FINITE'
  /** Host or device memory is exhausted; the device stays usable. */
  | 'OUT_OF_MEMORY'
  /** A LAPACK or cuSOLVER routine did not converge. */
  | 'NO_CONVERGENCE'
  /** The device, its driver or one of its libraries is missing. */
  | 'DEVICE_UNAVAILABLE'
  /** The native addon could not be loaded. */
  | 'ADDON_UNAVAILABLE'
  /** The `AbortSignal` fired. */
  | 'ABORTED'
  /** A checkpoint file that is truncated, lies about itself or lacks a part. */
  | 'BAD_CHECKPOINT'
  /** A sound checkpoint of a kind that molae does not know (model family, dtype, option). */
  | 'UNSUPPORTED_CHECKPOINT'
  /** The output folder exists and `force` was not given, or it has what not even that may replace. */
  | 'OUTPUT_EXISTS'
  /** A stopped conversion of another source or with other options left finished files for the output, and `force` was not given. */
  | 'OUTPUT_UNFINISHED'
  /** Another conversion is writing the output folder. */
  | 'OUTPUT_BUSY'
  /** A file could not be read or written. */
  | 'IO'
  /** A defect in molae. */
  | 'INTERNAL';

/** Every error that molae throws on purpose. */
export class MolaeError extends Error {
  override readonly name = 'MolaeError';
  readonly code: MolaeErrorCode;

  constructor(code: MolaeErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** "Expected a positive integer for topK but received -3 of type number": one form for all argument errors. */
export function expected(what: string, name: string, received: unknown): MolaeError {
  return new MolaeError(
    'INVALID_ARGUMENT',
    `Expected ${what} for ${name} but received ${quote(received)} of type ${typeName(received)}`,
  );
}

/** @internal Throws unless `value` is an object, such as options are. */
export function checkObject(value: unknown, name: string): asserts value is object {
  if (typeof value !== 'object' || value === null) throw expected('an object', name, value);
}

/** @throws MolaeError `INVALID_ARGUMENT` for what is neither left out nor a function. */
export function checkCallback(value: unknown, name: string): void {
  if (value !== undefined && typeof value !== 'function') throw expected('a function', name, value);
}

/** What work that a signal stopped fails with: the signal's reason is the cause. */
export function abortedError(signal: AbortSignal | undefined): MolaeError {
  return new MolaeError('ABORTED', 'The operation was aborted', { cause: signal?.reason });
}

/** The error of so many, where others were expected. */
export function expectedCount(what: string, name: string, received: string): MolaeError {
  return new MolaeError('INVALID_ARGUMENT', `Expected ${what} for ${name} but received ${received}`);
}

/** Throws an {@link abortedError} when the signal has fired, and INVALID_ARGUMENT for what is no signal. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal !== undefined && typeof signal?.addEventListener !== 'function') {
    throw expected('an AbortSignal', 'signal', signal);
  }
  if (signal?.aborted) throw abortedError(signal);
}

/** The options that everything has which takes a while: INVALID_ARGUMENT where they are something else, ABORTED at once where it need not begin. */
export function checkWorkOptions(options: {
  readonly onProgress?: unknown;
  readonly signal?: AbortSignal | undefined;
}): void {
  checkCallback(options.onProgress, 'onProgress');
  throwIfAborted(options.signal);
}

/** The sizes of a shape, for a message: `[2, 3]`. */
export function shapeText(shape: readonly number[]): string {
  return `[${shape.join(', ')}]`;
}

/** A value, short enough for a message whatever its size. */
export function quote(value: unknown): string {
  return nameable(() => {
    if (Array.isArray(value))
      return value.length > 8 ? `an array of ${value.length}` : `[${value.map(quoteItem).join(', ')}]`;
    return quoteItem(value);
  }, 'an object');
}

/** One level only: an array may contain itself. */
function quoteItem(value: unknown): string {
  if (typeof value === 'string') return shortened(value);
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'function') return nameable(() => value.name, 'a function');
  if (ArrayBuffer.isView(value)) return `${value.byteLength} bytes`;
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'an array' : 'an object';
  return String(value);
}

function shortened(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 77)}...` : text);
}

function typeName(value: unknown): string {
  if (value === null) return 'null';
  return typeof value === 'object' ? nameable(() => value.constructor?.name, 'object') : typeof value;
}

/** What `read` says, unless the value's own code (a getter, a proxy) throws or gives no name. */
function nameable(read: () => unknown, otherwise: string): string {
  try {
    const name = read();
    return typeof name === 'string' && name !== '' ? name : otherwise;
  } catch {
    return otherwise;
  }
}
