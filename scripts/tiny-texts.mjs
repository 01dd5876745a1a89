// The texts by which the trained test model is compared, as token ids; `npm run compare-tiny` and `compare-grouping.mjs`.
//
// Methods look at 32 windows from 60-93% of Moby-Dick and 32 from 90-97% of the State of the Union addresses, as many as
// `molae convert --calibrate` takes; 64 windows from each of the last 4.5% and 1.8% judge. The model was trained on most of
// both texts: only their last 2% it has surely not seen, so that more than half of the windows from Moby-Dick may have been in
// its training. It was trained on ASCII: other characters are dropped, since curly quotes alone raise its perplexity
// threefold and more.

import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

export const WINDOW = 256;

/** What methods may look at, so many windows of each text. */
export function calibrationIds(tokenizer, windows = 32) {
  return [
    ...spread(tokensOf(tokenizer, readMobyDick(), 0.6, 0.93), windows),
    ...spread(tokensOf(tokenizer, readAddresses(), 0.9, 0.97), windows),
  ];
}

/** What judges them. */
export function evaluationIds(tokenizer) {
  return [
    ...spread(tokensOf(tokenizer, readMobyDick(), 0.955, 1), 64),
    ...spread(tokensOf(tokenizer, readAddresses(), 0.982, 1), 64),
  ];
}

function readMobyDick() {
  return ascii(readFileSync(join(packageData('datasets-moby-dick'), 'data.txt'), 'utf8'));
}

function readAddresses() {
  const folder = packageData('datasets-sotu');
  const files = readdirSync(folder).filter((name) => name.endsWith('.txt'));
  return ascii(
    files
      .sort()
      .map((name) => readFileSync(join(folder, name), 'utf8'))
      .join('\n'),
  );
}

function packageData(name) {
  return join(root, 'node_modules', '@stdlib', name, 'data');
}

function ascii(text) {
  return text.replace(/[^\n\x20-\x7e]/g, '');
}

/** Token ids of a part of a text, from one share of its characters to another. */
function tokensOf(tokenizer, text, from, to) {
  return Array.from(
    tokenizer.encode(text.slice(Math.floor(from * text.length), Math.floor(to * text.length))),
  );
}

/** So many windows, evenly spread over the tokens. */
function spread(ids, count) {
  if (ids.length < count * WINDOW)
    throw new Error(`${ids.length} tokens are no ${count} windows of ${WINDOW}`);
  const step = (ids.length - WINDOW) / Math.max(1, count - 1);
  return Array.from({ length: count }, (_, i) => {
    const begin = Math.floor(i * step);
    return ids.slice(begin, begin + WINDOW);
  }).flat();
}
