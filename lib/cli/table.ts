/** A column of numbers lines up on the right, one of words on the left. */
export type Alignment = 'left' | 'right';

/** Rows of cells as aligned lines, two spaces between columns. Empty header cells are fine; short rows too. */
export function table(rows: readonly (readonly string[])[], alignments: readonly Alignment[]): string[] {
  const widths = alignments.map((_, column) =>
    Math.max(0, ...rows.map((row) => displayWidth(row[column] ?? ''))),
  );
  return rows.map((row) =>
    alignments
      .map((alignment, column) => {
        const cell = row[column] ?? '';
        const padding = ' '.repeat((widths[column] as number) - displayWidth(cell));
        return alignment === 'left' ? cell + padding : padding + cell;
      })
      .join('  ')
      .trimEnd(),
  );
}

/** `name  value` lines. */
export function properties(entries: readonly (readonly [string, string])[]): string[] {
  return table(entries, ['left', 'left']);
}

/** Breaks a text at spaces into lines of at most `width` characters; a longer word stays whole. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else {
      line = line === '' ? word : `${line} ${word}`;
    }
  }
  return [...lines, line];
}

const PREFIXES = ['', 'k', 'M', 'G', 'T', 'P', 'E'];

/** 4718592 → `4.7 M`; below 1000 as it is. Thousands, not 1024s. */
export function count(value: number): string {
  return scaled(value, '');
}

/** 1 → `1 file`, 3 → `3 files`: a number in full, of a noun that takes an s. */
export function counted(value: number, noun: string): string {
  return `${value} ${noun}${value === 1 ? '' : 's'}`;
}

/** 9437184 → `9.4 MB` */
export function bytes(value: number): string {
  return scaled(value, 'B');
}

/** 1.3125 → `1.31×` */
export function times(ratio: number): string {
  return `${ratio.toFixed(ratio !== 0 && ratio < 0.01 ? 4 : 2)}×`;
}

/** 0.2471 → `24.7%` */
export function percent(share: number): string {
  return `${(100 * share).toFixed(1)}%`;
}

/** 0.31 → `0.3 s`, 75 → `1 min 15 s`, 5400 → `1 h 30 min` */
export function duration(seconds: number): string {
  if (seconds < 0.1) return `${Math.max(1, Math.round(1000 * seconds))} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.round(whole / 60);
  if (whole < 600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A relative error to three digits; `0` only where it is exactly that. */
export function relative(error: number): string {
  if (error === 0) return '0';
  return error < 1e-3 ? error.toExponential(1) : error.toFixed(4);
}

function scaled(value: number, unit: string): string {
  let prefix = 0;
  let rest = value;
  while (Math.abs(rest) >= 999.95 && prefix < PREFIXES.length - 1) {
    rest /= 1000;
    prefix++;
  }
  const digits = prefix === 0 ? String(Math.round(rest)) : rest.toFixed(rest < 99.95 ? 1 : 0);
  return `${digits} ${PREFIXES[prefix]}${unit}`.trimEnd();
}

/** Code points; close enough for the names and symbols printed here. */
function displayWidth(text: string): number {
  return [...text].length;
}
