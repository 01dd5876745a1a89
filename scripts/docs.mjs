// `npm run docs`: writes the reference of everything that lib/index.ts exports, from the docstrings, to
// build/docs/reference.md. It reads the declarations that the compiler makes (`npm run build:ts` first): they have the
// docstrings and the types as users see them. What is marked @internal is left out. Fails, once it is written, where an
// export has no docstring or names a type of the package that is not exported.

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
const exported = new Set(sections.flatMap(({ names }) => names));
const anchors = anchorsOf(['Reference', ...sections.map(({ title }) => title)], [...exported]);
const undocumented = [];
const hidden = [];
const text = [
  '# Reference',
  '',
  'Made by `npm run docs` from the docstrings. How the objects hang together: docs/api.md.',
  ...sections.map(({ title, names }) => ['', `## ${title}`, '', names.map(linkTo).join(' · ')]),
  ...sections.flatMap(({ file, names }) => names.map((name) => entry(file, name))),
];
mkdirSync(dirname(out), { recursive: true });
writeFileSync(out, `${text.flat().join('\n')}\n`);
console.log(`${relative(root, out)}: ${sections.reduce((sum, { names }) => sum + names.length, 0)} exports`);
if (undocumented.length > 0) console.error(`docs: without a docstring: ${undocumented.join(', ')}`);
if (hidden.length > 0)
  console.error(`docs: in the signature of an export, but not exported: ${hidden.join(', ')}`);
if (undocumented.length + hidden.length > 0) process.exitCode = 1;

/** The re-exports of the index, by file. */
function exportsOf(index) {
  const source = readFileSync(index, 'utf8');
  return [...source.matchAll(/export (?:type )?\{([^}]+)\} from '\.\/([^']+)\.(?:js|ts)';/g)].map(
    ([, list, module]) => ({
      title: module,
      file: join(dist, `${module}.d.ts`),
      names: list
        .split(',')
        .map((name) => name.trim().replace(/^type /, ''))
        .filter(Boolean),
    }),
  );
}

/** The anchors of exports by their names. Headings that differ by their case alone are numbered, as GitHub does. */
function anchorsOf(headingsBefore, names) {
  const seen = new Map();
  const anchorOf = (heading) => {
    const plain = heading.toLowerCase().replaceAll(/[^\w-]/g, '');
    const earlier = seen.get(plain) ?? 0;
    seen.set(plain, earlier + 1);
    return earlier === 0 ? plain : `${plain}-${earlier}`;
  };
  headingsBefore.forEach(anchorOf);
  return new Map(names.map((name) => [name, anchorOf(name)]));
}

function linkTo(name) {
  return anchors.has(name) ? `[\`${name}\`](#${anchors.get(name)})` : `\`${name}\``;
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
  for (const type of hiddenTypes(source, declaration)) hidden.push(`${type} of ${name}`);
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

/** Types of the package that a declaration names and the index does not export: nobody can name them. */
function hiddenTypes(source, declaration) {
  const imported = [...source.matchAll(/^import (?:type )?\{([^}]+)\} from '\.[^']*';/gm)].flatMap(
    ([, list]) => list.split(',').map((name) => name.trim().replace(/^type /, '')),
  );
  const declared = [
    ...source.matchAll(/^(?:export )?(?:declare )?(?:abstract )?(?:class|interface|type) (\w+)/gm),
  ];
  const known = new Set([...imported, ...declared.map(([, name]) => name)]);
  const code = declaration.replaceAll(/\/\*[\s\S]*?\*\//g, '');
  const named = new Set(code.match(/\b[A-Z]\w*/g));
  return [...named].filter((name) => known.has(name) && !exported.has(name));
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
    .replaceAll(/\{@link (\w+)\}/g, (_, name) => linkTo(name))
    .replaceAll(/^@(\w+)/gm, '\n**$1**');
}
