/** Milliseconds that something may take. A sanitizer (scripts/sanitize.sh) makes everything several times as long. */
export function deadline(seconds: number): number {
  return 1000 * seconds * (process.env.MOLAE_SANITIZER ? 10 : 1);
}
