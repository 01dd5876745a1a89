import { refuseLfsPointer } from './git-lfs.ts';
import { badCheckpoint, quote } from './problems.ts';

const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/** A JSON object as read from a file: nothing is known of its values. */
export type JsonObject = Readonly<Record<string, unknown>>;

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * Parses JSON from an untrusted file: valid UTF-8 without a byte-order mark, no object with the same key twice
 * (`JSON.parse` would silently keep the last one, other readers the first), nested at most `maxDepth` deep.
 *
 * @throws BAD_CHECKPOINT naming the file.
 */
export function parseStrictJson(bytes: Uint8Array, file: string, maxDepth = 64): unknown {
  refuseLfsPointer(bytes, file);
  const text = decodeUtf8(bytes, file);
  // Before JSON.parse, whose memory grows with the depth: a file of 100 MB of "[" would exhaust it.
  checkDepthAndKeys(text, file, maxDepth);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw badCheckpoint(file, `not valid JSON (${cause instanceof Error ? cause.message : cause})`, cause);
  }
}

function decodeUtf8(bytes: Uint8Array, file: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw badCheckpoint(file, 'not valid UTF-8', cause);
  }
}

/**
 * Needs no full grammar: in valid JSON a string is a key exactly when a colon follows it, and on invalid JSON
 * it is enough to come to an end, for JSON.parse refuses it next.
 */
function checkDepthAndKeys(text: string, file: string, maxDepth: number): void {
  const keysOfOpen: (Set<string> | undefined)[] = []; // undefined for an array
  for (let i = 0; i < text.length; i++) {
    const char = text.charCodeAt(i);
    if (char === QUOTE) {
      const end = endOfString(text, i);
      if (isFollowedByColon(text, end)) recordKey(keysOfOpen.at(-1), text.slice(i, end), file);
      i = end - 1;
    } else if (char === 0x7b /* { */ || char === 0x5b /* [ */) {
      if (keysOfOpen.length === maxDepth)
        throw badCheckpoint(file, `JSON nested deeper than ${maxDepth} levels`);
      keysOfOpen.push(char === 0x7b ? new Set() : undefined);
    } else if (char === 0x7d /* } */ || char === 0x5d /* ] */) {
      keysOfOpen.pop();
    }
  }
}

/** The index after the closing quote of the string that opens at `start`. */
function endOfString(text: string, start: number): number {
  let i = start + 1;
  while (i < text.length) {
    const char = text.charCodeAt(i);
    if (char === QUOTE) return i + 1;
    i += char === BACKSLASH ? 2 : 1;
  }
  return text.length;
}

function isFollowedByColon(text: string, from: number): boolean {
  let i = from;
  while (i < text.length && ' \t\n\r'.includes(text.charAt(i))) i++;
  return text.charAt(i) === ':';
}

function recordKey(keys: Set<string> | undefined, literal: string, file: string): void {
  if (keys === undefined) return;
  const key = literal.includes('\\') ? unescapeKey(literal, file) : literal.slice(1, -1);
  if (keys.has(key)) throw badCheckpoint(file, `the key ${quote(key)} occurs twice in one JSON object`);
  keys.add(key);
}

function unescapeKey(literal: string, file: string): string {
  try {
    return String(JSON.parse(literal));
  } catch (cause) {
    throw badCheckpoint(file, `not valid JSON (the key ${quote(literal)})`, cause);
  }
}

/**
 * An object as JSON in which every value that `text` (valid JSON of an object) has under the same key stays as it is written
 * there. JavaScript has one kind of number: it would write `0.0` as `0`, and loaders with strict types refuse that.
 */
export function stringifyLike(text: string, value: JsonObject): string {
  const before = isObjectText(text) ? (JSON.parse(text) as JsonObject) : {};
  const literals = topLevelLiterals(text);
  const lines = Object.entries(value).map(([key, member]) => {
    const literal = literals.get(key);
    const isSame = literal !== undefined && JSON.stringify(member) === JSON.stringify(before[key]);
    // Nested lines are indented by one level more than JSON.stringify knows of.
    const json = isSame ? literal : JSON.stringify(member, null, 2).replaceAll('\n', '\n  ');
    return `  ${JSON.stringify(key)}: ${json}`;
  });
  return lines.length === 0 ? '{}\n' : `{\n${lines.join(',\n')}\n}\n`;
}

function isObjectText(text: string): boolean {
  return text.trimStart().startsWith('{');
}

/** Key → its value as it is written, for the members of the outermost object. */
function topLevelLiterals(text: string): Map<string, string> {
  const literals = new Map<string, string>();
  let depth = 0;
  let key: string | undefined;
  let begin = 0;
  const endMember = (end: number) => {
    if (key !== undefined) literals.set(key, text.slice(begin, end).trim());
    key = undefined;
  };
  for (let i = 0; i < text.length; i++) {
    const char = text.charCodeAt(i);
    if (char === QUOTE) {
      const end = endOfString(text, i);
      if (depth === 1 && key === undefined) {
        key = JSON.parse(text.slice(i, end)) as string;
        begin = text.indexOf(':', end) + 1;
        i = begin - 1;
      } else {
        i = end - 1;
      }
    } else if (char === 0x7b /* { */ || char === 0x5b /* [ */) {
      depth++;
    } else if (char === 0x7d /* } */ || char === 0x5d /* ] */) {
      depth--;
      if (depth === 0) endMember(i);
    } else if (char === 0x2c /* , */ && depth === 1) {
      endMember(i);
    }
  }
  return literals;
}
