import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PACKAGE_ROOT } from '../lib/package.ts';
import { PAGES, withTable } from './support/pages.ts';

// Brings the tables in README.md and docs/ up to the results that are stored: npm run bench:pages

for (const page of PAGES) {
  const path = join(PACKAGE_ROOT, page.file);
  writeFileSync(path, withTable(readFileSync(path, 'utf8'), page));
}
