import { ModelConfig } from '../checkpoint/config.ts';
import { describeDecoder } from '../checkpoint/families/index.ts';
import { openDevice } from '../device.ts';
import { BLOCK_DTYPES } from '../dtype.ts';
import {
  checkPrompt,
  DEFAULT_MAX_TOKENS,
  type FinishReason,
  type GenerateOptions,
  generate as generateTokens,
} from '../model/generate.ts';
import { Model } from '../model/model.ts';
import { StopText } from '../model/stop-text.ts';
import { TextStream } from '../model/text-stream.ts';
import type { Arguments } from './arguments.ts';
import type { CommandDefinition } from './command.ts';
import { namingCheckpoint } from './failure.ts';
import { QUANTIZE_OPTION, STREAM_OPTION } from './model-options.ts';
import { DEVICE_OPTION } from './option.ts';
import { interruptible } from './signals.ts';
import { openTokenizer, textOrStdin } from './text.ts';

export const generate: CommandDefinition = {
  name: 'generate',
  positionals: ['checkpoint'],
  summary: 'continue a prompt',
  description: [
    'Runs the whole model, dense or latent, token by token. Takes the most likely token each time, unless --temperature, --top-k, --top-p, --min-p or --seed ask for a draw.',
  ],
  options: [
    { name: 'prompt', value: 'text', description: 'what to continue; - for standard input' },
    { name: 'chat', description: "wrap the prompt in the model's chat template" },
    { name: 'max-tokens', value: 'T', description: `stop after T tokens (${DEFAULT_MAX_TOKENS})` },
    { name: 'stop', value: 'text', description: 'stop before this text; may be repeated', repeatable: true },
    {
      name: 'temperature',
      value: 't',
      description:
        '0 for the most likely token, more for variety (0, or 1 where another option asks for a draw)',
    },
    { name: 'top-k', value: 'k', description: 'sample from the k most likely tokens' },
    {
      name: 'top-p',
      value: 'p',
      description: 'sample from the most likely tokens that reach this probability',
    },
    {
      name: 'min-p',
      value: 'p',
      description: "sample from tokens with this share of the most likely one's probability",
    },
    { name: 'seed', value: 's', description: 'draw; the same seed gives the same text (0)' },
    STREAM_OPTION,
    QUANTIZE_OPTION,
    DEVICE_OPTION,
  ],
  examples: [
    ['generate ./out --prompt "Call me"', 'the most likely continuation'],
    ['generate ./out --prompt "Call me" --temperature 0.8 --top-p 0.9 --seed 7', 'a livelier one'],
  ],
  async run(args, output) {
    const given = args.string('prompt');
    if (given === undefined) throw args.usage('generate needs --prompt <text>');
    const prompt = await textOrStdin(given);
    if (prompt === '') throw args.usage('there is nothing in --prompt to continue');
    const options = readOptions(args);
    const tokenizer = await openTokenizer(args.positional(0));
    const ids = args.has('chat')
      ? tokenizer.encode(tokenizer.applyChatTemplate([{ role: 'user', content: prompt }]))
      : tokenizer.encodePrompt(prompt);
    // Before the weights are loaded, which may take minutes.
    checkPrompt(ids, describeDecoder(await ModelConfig.read(args.positional(0))));
    using device = await openDevice(args.device());
    // A chat's reader knows the question, and an answer begins anew; what a text goes on from belongs to it.
    const [opening, stream] = args.has('chat')
      ? ['', new TextStream(tokenizer)]
      : [prompt, new TextStream(tokenizer, ids)];
    const stop = new StopText(options.stop);
    let text = '';
    let tokens = 0;
    const write = (piece: string) => {
      text += piece;
      output.piece(piece);
    };
    const show = (token: number) => {
      if (tokens === 0) output.piece(opening);
      tokens++;
      write(stop.add(stream.add(token)));
      return stop.found === undefined && !output.isClosed;
    };
    const openAndRun = async (signal: AbortSignal) => {
      await using model = await Model.open(args.positional(0), {
        device,
        stream: args.has('stream'),
        quantize: args.oneOf('quantize', BLOCK_DTYPES),
        signal,
      });
      const written = await namingCheckpoint(args.positional(0), () =>
        run(model, ids, { ...options, signal }, show),
      );
      const rest = stop.add(stream.end()) + stop.end();
      const finishReason = stop.found === undefined ? written.finishReason : 'stop';
      if (finishReason === undefined) return;
      const tokensPerSecond = tokens / written.seconds;
      output.result({ text: text + rest, tokens, tokensPerSecond, finishReason, prompt }, () => [
        tokens === 0 ? opening : rest,
      ]);
      const why =
        finishReason === 'stop'
          ? `stopped before ${JSON.stringify(stop.found)}`
          : inWords(finishReason, options, model);
      if (!output.json) output.note(`${tokens} tokens, ${tokensPerSecond.toFixed(1)} per second: ${why}`);
    };
    try {
      await interruptible(openAndRun, () => {});
    } finally {
      output.endLine();
    }
  },
};

/** Gives each token as soon as it is there, as long as anybody wants more: else there is no reason why it ended. */
async function run(
  model: Model,
  prompt: readonly number[],
  options: GenerateOptions,
  give: (token: number) => boolean,
): Promise<{ readonly finishReason: FinishReason | undefined; readonly seconds: number }> {
  let finishReason: FinishReason | undefined;
  const onFinish = (reason: FinishReason) => {
    finishReason = reason;
  };
  const started = performance.now();
  for await (const token of generateTokens(model, prompt, { ...options, onFinish })) {
    if (!give(token)) break;
  }
  return { finishReason, seconds: (performance.now() - started) / 1000 };
}

function inWords(reason: FinishReason, { maxTokens }: GenerateOptions, { spec }: Model): string {
  switch (reason) {
    case 'endToken':
      return 'the model ended the text';
    case 'maxTokens':
      return `stopped at --max-tokens ${maxTokens}`;
    case 'context':
      return `stopped where the context of ${spec.contextLength} tokens is full`;
  }
}

function readOptions(args: Arguments) {
  return {
    maxTokens: args.positiveInteger('max-tokens') ?? DEFAULT_MAX_TOKENS,
    temperature: args.number('temperature', 0, Number.MAX_VALUE),
    topK: args.positiveInteger('top-k'),
    topP: args.probability('top-p'),
    minP: args.number('min-p', 0, 1),
    seed: args.integer('seed'),
    stop: args.strings('stop'),
  };
}
