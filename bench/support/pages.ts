import { join } from 'node:path';
import { PACKAGE_ROOT } from '../../lib/package.ts';
import { aimsTable } from './aims.ts';
import type { Row } from './context.ts';
import { Failure } from './failure.ts';
import { readResults } from './report.ts';
import { speedTable } from './speed-table.ts';

/** A page that has a table of stored results, between two comments. */
export interface Page {
  readonly file: string;
  table(): string;
}

export const PAGES: readonly Page[] = [
  { file: 'README.md', table: () => speedTable(stored('amd-epyc-2t')) },
  {
    file: 'docs/performance.md',
    table: () =>
      aimsTable([
        { machine: 'EPYC, AVX-512', rows: stored('amd-epyc-2t') },
        { machine: 'EPYC, AVX2', rows: stored('amd-epyc-avx2-2t') },
        { machine: 'Xeon, AVX-512', rows: stored('intel-xeon-2t') },
        { machine: 'Xeon, AVX2', rows: stored('intel-xeon-avx2-2t') },
      ]),
  },
];

const BEGIN = '<!-- written by npm run bench:pages -->';
const END = '<!-- end of what it writes -->';

/** The page's text with the table as it is to be. */
export function withTable(text: string, { file, table }: Page): string {
  const [begin, end] = [text.indexOf(BEGIN), text.indexOf(END)];
  if (begin < 0 || end < begin) throw new Failure(`${file} has no ${BEGIN} and ${END}`);
  return `${text.slice(0, begin)}${BEGIN}\n\n${table()}\n\n${text.slice(end)}`;
}

function stored(machine: string): readonly Row[] {
  const path = join(PACKAGE_ROOT, 'bench', 'results', `${machine}.json`);
  const results = readResults(path);
  if (!results) throw new Failure(`There is no ${path}`);
  return results.results;
}
