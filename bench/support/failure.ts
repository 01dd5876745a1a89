/** What may go wrong, and is told in one line. */
export class Failure extends Error {}
