import { openDevice } from '../device.ts';
import { BLOCK_DTYPES } from '../dtype.ts';
import { type GenerateOptions, generate as generateTokens } from '../model/generate.ts';
import { Model } from '../model/model.ts';
import { Tokenizer } from '../model/tokenizer.ts';
import type { Arguments } from './arguments.ts';
import type { CommandDefinition } from './command.ts';
import { QUANTIZE_OPTION, STREAM_OPTION } from './model-options.ts';
import { DEVICE_OPTION } from './option.ts';
import { interruptible } from './signals.ts';

export const generate: CommandDefinition = {
  name: 'generate',
  positionals: ['checkpoint'],
  summary: 'continue a prompt',
  description: [
    'Runs the whole model, dense or latent, token by token, and always takes the most likely one, unless --temperature, --top-p or --seed ask for a draw.',
  ],
  options: [
    { name: 'prompt', value: 'text', description: 'what to continue' },
    { name: 'chat', description: "wrap the prompt in the model's chat template" },
    { name: 'max-tokens', value: 'T', description: 'stop after T tokens (128)' },
    {
      name: 'temperature',
      value: 't',
      description: '0 for the most likely token, more for variety (1 with --top-p or --seed, else 0)',
    },
    {
      name: 'top-p',
      value: 'p',
      description: 'sample from the most likely tokens that reach this probability',
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
    const prompt = args.string('prompt');
    if (prompt === undefined || prompt === '') throw args.usage('generate needs --prompt <text>');
    const options = readOptions(args);
    const tokenizer = await Tokenizer.open(args.positional(0));
    const ids = args.has('chat')
      ? tokenizer.encode(tokenizer.applyChatTemplate([{ role: 'user', content: prompt }]))
      : tokenizer.encodePrompt(prompt);
    using device = await openDevice(args.device());
    await interruptible(
      async (signal) => {
        await using model = await Model.open(args.positional(0), {
          device,
          stream: args.has('stream'),
          quantize: args.oneOf('quantize', BLOCK_DTYPES),
          signal,
        });
        const tokens: number[] = [];
        const started = performance.now();
        for await (const token of generateTokens(model, ids, { ...options, signal })) tokens.push(token);
        const seconds = (performance.now() - started) / 1000;
        const text = tokenizer.decode(tokens);
        const tokensPerSecond = tokens.length / seconds;
        output.result({ text, tokens: tokens.length, tokensPerSecond, prompt }, () => [prompt + text]);
        if (!output.json) output.note(`${tokens.length} tokens, ${tokensPerSecond.toFixed(1)} per second`);
      },
      () => {},
    );
  },
};

function readOptions(args: Arguments): GenerateOptions {
  const topP = args.number('top-p', 0, 1);
  if (topP === 0) throw args.wrong('top-p', 'a number above 0, at most 1', '0');
  return {
    maxTokens: args.positiveInteger('max-tokens'),
    temperature: args.number('temperature', 0, Number.MAX_VALUE),
    topP,
    seed: args.integer('seed'),
  };
}
