// "<passed> passed, <failed> failed" from the file of vitest's JSON reporter. A test file that could not run at all
// counts as one failure: vitest's own number has only tests.

import { readFileSync } from 'node:fs';

const text = readFileSync(process.argv[2], 'utf8');
if (text === '') {
  console.log('0 passed, 1 failed'); // vitest itself stopped
} else {
  const { numPassedTests, numFailedTests, numPendingTests, numTodoTests, testResults } = JSON.parse(text);
  const broken = testResults.filter(
    ({ status, assertionResults }) =>
      status === 'failed' && assertionResults.every((test) => test.status !== 'failed'),
  );
  for (const { name } of broken) console.log(`could not run: ${name}`);
  const skipped = numPendingTests + numTodoTests;
  const counts = `${numPassedTests} passed, ${numFailedTests + broken.length} failed`;
  console.log(skipped > 0 ? `${counts}, ${skipped} skipped` : counts);
}
