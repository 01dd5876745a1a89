import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { PAGES, withTable } from '../../bench/support/pages.ts';
import { PACKAGE_ROOT } from '../../lib/package.ts';

it.each(PAGES)('$file has the figures of the stored results (else: npm run bench:pages)', (page) => {
  const text = readFileSync(join(PACKAGE_ROOT, page.file), 'utf8');
  expect(withTable(text, page)).toBe(text);
});

it('says which page has no place for its table', () => {
  const page = { file: 'docs/none.md', table: () => '' };
  expect(() => withTable('# Nothing here', page)).toThrow('docs/none.md has no <!-- written by');
});
