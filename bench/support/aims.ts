import type { Row } from './context.ts';

/** An aim of the design, and what a row that it is for has to say of it. */
interface Aim {
  readonly of: string;
  readonly wanted: string;
  readonly unit: Unit;
  /** Undefined where the aim is none of this row's. */
  judge(row: Row): Judged | undefined;
}

interface Judged {
  readonly value: number;
  readonly meets: boolean;
}

type Unit = '%' | '×' | ' µs';

export interface MachineRows {
  readonly machine: string;
  readonly rows: readonly Row[];
}

/** How many rows of each machine meet each aim, and what they have: a table in Markdown. */
export function aimsTable(machines: readonly MachineRows[]): string {
  const titles = ['', 'aim', ...machines.map(({ machine }) => machine)];
  const lines = aims()
    .map((aim) => [aim.of, aim.wanted, ...machines.map(({ rows }) => describe(aim, rows))])
    .filter(([, , ...cells]) => cells.some((cell) => cell !== ''));
  return [titles, titles.map(() => '---'), ...lines].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

/** "17 of 18: 74 to 98%, median 95". */
function describe({ judge, unit }: Aim, rows: readonly Row[]): string {
  const judged = rows.map(judge).filter((each) => each !== undefined);
  if (judged.length === 0) return '';
  const shown = judged
    .map(({ value }) => value)
    .sort((a, b) => a - b)
    .map((value) => (unit === '%' ? (100 * value).toFixed(0) : value.toFixed(value < 10 ? 2 : 1)));
  const [least, most] = [shown[0], shown.at(-1)];
  const met = judged.filter(({ meets }) => meets).length;
  const range = least === most ? least : `${least} to ${most}`;
  const median = shown.length > 2 ? `, median ${shown[shown.length >> 1]}` : '';
  return `${met} of ${shown.length}: ${range}${unit}${median}`;
}

function aims(): readonly Aim[] {
  const batch = (tokens: number) => (row: Row) => row.question === 'layer-prefill' && row.tokens === tokens;
  const large = (row: Row) => row.question === 'layer-prefill' && (row.tokens ?? 0) >= 512;
  const one = (row: Row) => row.question === 'layer-decode' && row.tokens === 1;
  const rounded = (row: Row) => row.question === 'layer-rounded' && (row.tokens ?? 0) >= 512;
  const named = (question: string, name: string) => (row: Row) =>
    row.question === question && row.name === name;
  const all = () => true;
  const f32 = (row: Row) => row.dtype === 'f32';
  const bf16 = (row: Row) => row.dtype === 'bf16';
  return [
    ...ofLayers('1 and 4 tokens', '85% of reading', 'of read bandwidth', all),
    ...ofLayers('16 tokens', '80% of the roofline', 'of roofline', batch(16)),
    ...ofLayers('64 tokens', '80% of the roofline', 'of roofline', batch(64)),
    ...ofLayers('128 rows an expert and more', '95% of sgemm', 'of sgemm', large),
    ...ofLayers(
      '512 tokens, fewer rows',
      '80% of the roofline',
      'of roofline',
      (row) => large(row) && f32(row),
    ),
    ...ofLayers(
      '512 tokens and more',
      '80% of the roofline',
      'of roofline',
      (row) => large(row) && bf16(row),
    ),
    byGoal('bf16 weights', '85% of the rate of f32', '%', 'of f32 rate', all),
    byGoal('latent against dense', '80% of the predicted gain', '%', 'of predicted gain', all),
    byGoal('`gemm`, 1024³ and 2048³', '95% of sgemm', '%', 'of sgemm', named('gemm', 'gemm')),
    byGoal('`batchedGemm`, 128 rows', '95% of sgemm', '%', 'of sgemm', named('batched-gemm', 'batchedGemm')),
    byGoal('`groupedGemm`, ragged', '95% of sgemm', '%', 'of sgemm', named('batched-gemm', 'groupedGemm')),
    byGoal('factorization', '3 times gesdd of the stack', '×', 'gesdd / ours', all),
    byGoal('`forwardSync`, no tokens', '5 µs', ' µs', 'µs a call', named('call-overhead', 'forwardSync')),
    byGoal('`forward`, no tokens', '40 µs', ' µs', 'µs a call', named('call-overhead', 'forward')),
    ...[
      { peer: 'onnxruntime', ways: ['onnxruntime'], times: 1.3 },
      { peer: 'llama.cpp', ways: ['llama.cpp'], times: 1.2 },
      { peer: 'PyTorch', ways: ['PyTorch loop', 'PyTorch grouped_mm'], times: 2 },
    ].flatMap(({ peer, ways, times }) => {
      const against = (which: string, concerns: (row: Row) => boolean) =>
        byFastest(`${peer}, ${which}`, times, ways, concerns);
      return [
        against('512 tokens and more, f32', (row) => large(row) && f32(row)),
        against('512 tokens and more, bf16', (row) => large(row) && bf16(row)),
        against('the same, our inputs rounded', rounded),
        against('1 token, f32', (row) => one(row) && f32(row)),
        against('1 token, bf16', (row) => one(row) && bf16(row)),
      ];
    }),
  ];
}

/** Of layers, dense and latent ones apart, in f32 and in bf16. */
function ofLayers(which: string, wanted: string, goal: string, concerns: (row: Row) => boolean): Aim[] {
  return ['f32', 'bf16'].flatMap((dtype) =>
    ['dense', 'latent'].map((kind) =>
      byGoal(
        `${which}, ${dtype} ${kind}`,
        wanted,
        '%',
        goal,
        (row) => row.data.kind === kind && row.dtype === dtype && concerns(row),
      ),
    ),
  );
}

function byGoal(of: string, wanted: string, unit: Unit, what: string, concerns: (row: Row) => boolean): Aim {
  return {
    of,
    wanted,
    unit,
    judge(row) {
      const goal = concerns(row) ? row.goals.find((each) => each.what === what) : undefined;
      return goal && { value: goal.value, meets: goal.met !== 'no' };
    },
  };
}

/** Against the fastest of several ways of a peer. */
function byFastest(
  of: string,
  times: number,
  names: readonly string[],
  concerns: (row: Row) => boolean,
): Aim {
  return {
    of,
    wanted: `${times} times as fast`,
    unit: '×',
    judge(row) {
      if (!concerns(row)) return undefined;
      const speedups = names.flatMap((name) => {
        const peer = row.peers[name];
        return peer && 'speedup' in peer ? [peer.speedup] : [];
      });
      if (speedups.length === 0) return undefined;
      const value = Math.min(...speedups);
      return { value, meets: value >= times };
    },
  };
}
