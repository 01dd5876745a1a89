/** Wrong usage: exit 2, with a pointer to the help. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}
