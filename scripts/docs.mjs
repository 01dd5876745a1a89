// `npm run docs`: writes the reference of everything that lib/index.ts exports, from the docstrings, to
// build/docs/reference.md. It reads the declarations that the compiler makes (`npm run build:ts` first): they have the
// docstrings and the types as users see them. What is marked @internal is left out.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const dist = join(root, 'dist');
const out = join(root, 'build/docs/reference.md');
if (!existsSync(join(dist, 'index.d.ts'))) {
  console.error('docs: dist/index.d.ts is missing: run "npm run build:ts" first.');
  process.exit(1);
}

const sections = exportsOf(join(dist, 'index.d.ts'));
const undocumented = [];
const text = [
  '# Reference',
  '',
  'Made by `npm run docs` from the docstrings. How the objects hang together: docs/api.md.',
  ...sections.map(({ title, names }) => [
    '',
    `## ${title}`,
    '',
    names.map((name) => `[\`${name}\`](#${name.toLowerCase()})`).join(' · '),
  ]),
  ...sections.flatMap(({ file, names }) => names.map((name) => entry(file, name))),
];
mkdirSync(dirname(out), { recursive: true });
writeFileSync(out, `${text.flat().join('\n')}\n`);
console.log(`${relative(root, out)}: ${sections.reduce((sum, { names }) => sum + names.length, 0)} exports`);
if (undocumented.length > 0) console.log(`without a docstring: ${undocumented.join(', ')}`);

/** The re-exports of the index, by file. */
function exportsOf(index) {
  const source = readFileSync(index, 'utf8');
  return [...source.matchAll(/export (?:type )?\{([^}]+)\} from '\.\/([^']+)\.(?:js|ts)';/g)].map(
    ([, list, module]) => ({
      title: module,
      file: join(dist, `${module}.d.ts`),
      names: list
        .split(',')
        .map((name) => name.replace('type ', '').trim())
        .filter(Boolean),
    }),
  );
}

function entry(file, name) {
  const source = readFileSync(file, 'utf8');
  const found = new RegExp(
    `(?:/\\*\\*(?<doc>(?:(?!\\*/)[\\s\\S])*)\\*/\\n)?^export (?:declare )?(?:abstract )?(?:class|function|interface|type|const) ${name}\\b`,
    'm',
  ).exec(source);
  if (!found) throw new Error(`${relative(root, file)} does not declare ${name}`);
  const begin = found.index + found[0].lastIndexOf('export ');
  const declaration = publicPart(source.slice(begin, endOf(source, begin)));
  const doc = found.groups?.doc;
  if (doc === undefined) undocumented.push(name);
  return [
    '',
    `### ${name}`,
    '',
    ...(doc === undefined ? [] : [proseOf(doc), '']),
    '```ts',
    declaration,
    '```',
  ];
}

/** Where a declaration ends: at its closing brace, or at the semicolon outside of all brackets. */
function endOf(source, begin) {
  const isBlock = /^export (?:declare )?(?:abstract )?(?:class|interface)/.test(
    source.slice(begin, begin + 40),
  );
  let depth = 0;
  for (let at = begin; at < source.length; at++) {
    if (source.startsWith('/*', at)) at = source.indexOf('*/', at) + 1;
    const character = source[at];
    if ('({['.includes(character)) depth++;
    if (')}]'.includes(character)) depth--;
    if (depth === 0 && (isBlock ? character === '}' : character === ';')) return at + 1;
  }
  return source.length;
}

/** Without members that are private or marked @internal. */
function publicPart(declaration) {
  return declaration
    .replace(/^export (declare )?/, '')
    .replaceAll(/^ *\/\*\*(?:(?!\*\/)[\s\S])*@internal(?:(?!\*\/)[\s\S])*\*\/\n(?: .*\n)*? .*;\n/gm, '')
    .replaceAll(/^ *(#private|private constructor.*);\n/gm, '');
}

function proseOf(doc) {
  return doc
    .split('\n')
    .map((line) => line.replace(/^ *\* ?/, '').trim())
    .join('\n')
    .trim()
    .replaceAll(/\{@link (\w+)\}/g, '[`$1`](#$1)')
    .replaceAll(/^@(\w+)/gm, '\n**$1**');
}
