import type { DecoderSpec } from '../checkpoint/decoder-spec.ts';
import { checkCallback, expected, expectedCount } from '../errors.ts';
import type { Model } from './model.ts';
import { Sampler, type SamplingOptions } from './sampling.ts';
import { checkContext } from './windows.ts';

/** Why a text ends: the model said that it is done (`endToken`), or there were `maxTokens`, or the `context` is full. */
export type FinishReason = 'endToken' | 'maxTokens' | 'context';

/** @internal */
export const DEFAULT_MAX_TOKENS = 128;

/** How `generate` continues a prompt, and for how long. */
export interface GenerateOptions extends SamplingOptions {
  /** By default 128; fewer where the context ends or the model says it is done. */
  readonly maxTokens?: number | undefined;
  /** Called once, after the last token; not where the caller breaks off, nor where something fails. */
  readonly onFinish?: ((reason: FinishReason) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Continues a prompt of token ids, token by token, up to one of the model's `endTokens`. Of generation_config.json nothing else
 * counts: it draws only where `options` say so.
 *
 * @throws MolaeError `INVALID_ARGUMENT` for an empty prompt or one that fills the context; `NON_FINITE`; `ABORTED`.
 */
export async function* generate(
  model: Model,
  prompt: readonly number[],
  options: GenerateOptions = {},
): AsyncGenerator<number> {
  const { maxTokens = DEFAULT_MAX_TOKENS, onFinish, signal } = options;
  checkCallback(onFinish, 'onFinish');
  if (!Number.isSafeInteger(maxTokens) || maxTokens < 1)
    throw expected('a positive integer', 'maxTokens', maxTokens);
  checkPrompt(prompt, model.spec);
  const { contextLength } = model.spec;
  const sampler = new Sampler(options);
  using cache = model.newCache(Math.min(contextLength, prompt.length + maxTokens));
  let logits = await model.extend(cache, prompt, signal);
  for (let made = 1; ; made++) {
    const token = sampler.next(logits);
    if (model.endTokens.has(token)) return onFinish?.('endToken');
    yield token;
    if (made === maxTokens) return onFinish?.('maxTokens');
    if (prompt.length + made === contextLength) return onFinish?.('context');
    logits = await model.extend(cache, [token], signal);
  }
}

/** @internal Throws unless the prompt leaves room for a token in the context: what is known before any weight is read. */
export function checkPrompt(prompt: readonly number[], spec: Pick<DecoderSpec, 'contextLength'>): void {
  checkContext({ spec });
  const { contextLength } = spec;
  if (prompt.length === 0 || prompt.length >= contextLength) {
    throw expectedCount(
      `1 to ${contextLength - 1} tokens (the model's context less one)`,
      'prompt',
      `${prompt.length} tokens`,
    );
  }
}
