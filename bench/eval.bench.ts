import { join } from 'node:path';
import { WrongResult } from '../lib/bench/check.ts';
import { type Call, statistics, Took } from '../lib/bench/timing.ts';
import type { Timing } from '../lib/bench/yardstick.ts';
import { SafetensorsFile } from '../lib/checkpoint/safetensors/reader.ts';
import { Model } from '../lib/model/model.ts';
import { perplexity } from '../lib/model/perplexity.ts';
import { PACKAGE_ROOT } from '../lib/package.ts';
import { startTransformersEval } from './peers/transformers.ts';
import type { Context, Question } from './support/context.ts';
import { orAbsent, type PeerResult } from './support/peers.ts';

const FIXTURES = join(PACKAGE_ROOT, 'test', 'fixtures');
const CHECKPOINT = join(FIXTURES, 'tiny-qwen2-moe');
const TOKENS = join(FIXTURES, 'ppl-tokens.safetensors');
/** One of the token sequences in that file. */
const TEXT = 'moby';
const WINDOW = 256;

/** Whole windows only: the peer knows no others. */
async function readTokens(windows: number): Promise<number[]> {
  const file = await SafetensorsFile.open(TOKENS);
  try {
    const bytes = await file.read(TEXT);
    const all = [...new BigInt64Array(bytes.slice().buffer)].map(Number);
    return all.slice(0, Math.min(windows, Math.floor(all.length / WINDOW)) * WINDOW);
  } finally {
    await file.close();
  }
}

/** How many times as fast as the other each of two was, pass by pass: passes that followed each other make a pair. */
function pairedRatios(ours: readonly number[], theirs: readonly number[]): number[] {
  return ours.map((ms, i) => (theirs[i] as number) / ms);
}

async function measure(context: Context, windows: number): Promise<void> {
  await using model = await Model.open(CHECKPOINT, { device: context.device });
  const ids = await readTokens(windows);
  const peer = context.wantsPeers
    ? await orAbsent(() =>
        startTransformersEval(CHECKPOINT, TOKENS, TEXT, ids.length / WINDOW, context.threads),
      )
    : { absent: 'not asked for' };
  const times = { molae: [] as number[], pytorch: [] as number[] };
  let ours = 0;
  let tokens = 0;
  const recorded = (whose: keyof typeof times, took: Took) => {
    times[whose].push(took.ms);
    return took;
  };
  const calls: Record<string, Call> = {
    molae: async () => {
      const result = await perplexity(model, ids, { window: WINDOW });
      ({ perplexity: ours, tokens } = result);
      return recorded('molae', new Took(1000 * result.seconds));
    },
    ...('absent' in peer ? {} : { pytorch: async () => recorded('pytorch', await peer.time()) }),
  };
  try {
    const effort = context.quick ? { seconds: 3, minSamples: 5 } : { seconds: 10, minSamples: 15 };
    const timing = (await context.timeTogether(calls, effort)).molae as Timing;
    const evaluated = 'absent' in peer ? undefined : peer.ready;
    if (evaluated && !(Math.abs(ours / evaluated.perplexity - 1) <= 1e-5 && tokens === evaluated.tokens)) {
      throw new WrongResult(
        `eval: perplexity ${ours} of ${tokens} predictions, but PyTorch says ${evaluated.perplexity} of ${evaluated.tokens}`,
      );
    }
    // The first pass of each only warmed up.
    const ratios = statistics(pairedRatios(times.molae.slice(1), times.pytorch.slice(1)));
    const pytorch: PeerResult =
      'absent' in peer ? peer : { ...statistics(times.pytorch.slice(1)), version: peer.ready.version };
    const tokensPerSecond = (1000 * tokens) / timing.stats.medianMs;
    const compared =
      'absent' in pytorch
        ? ''
        : `; ratio p10 ${ratios.p10Ms.toFixed(2)}, p50 ${ratios.medianMs.toFixed(2)}, p90 ${ratios.p90Ms.toFixed(2)}`;
    context.add({
      name: 'eval',
      shape: `tiny-qwen2-moe, ${ids.length / WINDOW} windows of ${WINDOW}: ${tokensPerSecond.toFixed(0)} tokens/s${compared}`,
      tokens,
      dtype: 'bf16',
      timing,
      peers: context.wantsPeers ? { 'PyTorch (f32)': pytorch } : {},
      data: {
        tokensPerSecond,
        perplexity: ours,
        ...('absent' in pytorch
          ? {}
          : {
              peerTokensPerSecond: (1000 * tokens) / pytorch.medianMs,
              ratioP10: ratios.p10Ms,
              ratioP50: ratios.medianMs,
              ratioP90: ratios.p90Ms,
            }),
      },
    });
  } finally {
    if (!('absent' in peer)) peer[Symbol.dispose]();
  }
}

export const question: Question = {
  name: 'eval',
  asks: 'How fast is a whole model evaluated, against PyTorch on the same windows and threads?',
  minutes: { full: 1.5, quick: 0.5 },
  run: (context) => measure(context, 20),
};
