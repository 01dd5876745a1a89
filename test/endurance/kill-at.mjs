// Preloaded into a process (node --import): counts what it does to the file system and, at the operation numbered
// MOLAE_KILL_AT (from 1 on), kills it outright: before the operation if the number is odd, right after it if even.
// With 0 it only counts, and writes the count to the file MOLAE_COUNT_TO.
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';

const target = Number(process.env.MOLAE_KILL_AT);
let count = 0;

function wrap(owner, name) {
  const original = owner[name];
  owner[name] = async function (...args) {
    const own = ++count;
    if (own === target && own % 2 === 1) process.kill(process.pid, 'SIGKILL');
    try {
      return await original.apply(this, args);
    } finally {
      if (own === target) process.kill(process.pid, 'SIGKILL'); // also after one that failed, as some are meant to
    }
  };
}

const handle = await fs.promises.open(new URL(import.meta.url));
const prototype = Object.getPrototypeOf(handle);
await handle.close();
for (const name of ['write', 'sync', 'writeFile']) wrap(prototype, name);
for (const name of ['mkdir', 'open', 'rename', 'rm', 'unlink', 'link', 'writeFile', 'copyFile'])
  wrap(fs.promises, name);
syncBuiltinESMExports();

if (target === 0) process.on('exit', () => fs.writeFileSync(process.env.MOLAE_COUNT_TO, String(count)));
