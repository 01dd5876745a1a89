import { join } from 'node:path';
import { Template } from '@huggingface/jinja';
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';
import { isFile, readJsonObject, readSmallFile } from '../checkpoint/files.ts';
import { refuseLfsPointer } from '../checkpoint/git-lfs.ts';
import { isJsonObject, type JsonObject } from '../checkpoint/json.ts';
import { MolaeError } from '../errors.ts';

/** Tokenizers of large vocabularies have tens of megabytes. */
const MAX_BYTES = 256 * 1024 ** 2;

/**
 * One turn of a conversation, as chat templates take them: roles are `system`, `user`, `assistant` and what else the
 * template knows.
 */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

/** Text to token ids and back, by a checkpoint's own tokenizer.json and chat template. */
export class Tokenizer {
  readonly #tokenizer: HuggingFaceTokenizer;
  readonly #config: JsonObject;
  readonly #special: ReadonlySet<number>;
  readonly #template: string | undefined;

  private constructor(tokenizer: HuggingFaceTokenizer, config: JsonObject, template: string | undefined) {
    this.#tokenizer = tokenizer;
    this.#special = new Set(tokenizer.all_special_ids);
    this.#config = config;
    this.#template = template;
  }

  /**
   * @throws MolaeError `BAD_CHECKPOINT` where tokenizer.json is missing or broken.
   */
  static async open(folder: string): Promise<Tokenizer> {
    const path = join(folder, 'tokenizer.json');
    if (!(await isFile(path))) {
      throw new MolaeError(
        'BAD_CHECKPOINT',
        `${path}: there is no such file; without a tokenizer, text means nothing to the model`,
      );
    }
    const definition = await readJsonObject(path, MAX_BYTES);
    const configPath = join(folder, 'tokenizer_config.json');
    const config = (await isFile(configPath)) ? await readJsonObject(configPath, MAX_BYTES) : {};
    const templatePath = join(folder, 'chat_template.jinja');
    const template = (await isFile(templatePath)) ? await readTemplate(templatePath) : config.chat_template;
    try {
      const tokenizer = new HuggingFaceTokenizer(definition, config);
      return new Tokenizer(tokenizer, config, chatTemplate(template));
    } catch (cause) {
      throw new MolaeError(
        'UNSUPPORTED_CHECKPOINT',
        `${path}: ${cause instanceof Error ? cause.message : cause}`,
        { cause },
      );
    }
  }

  /** Token ids of a text, as it is: no special tokens around it. */
  encode(text: string): number[] {
    return this.#tokenizer.encode(text, { add_special_tokens: false }).ids;
  }

  /** Token ids of a prompt, with the special tokens that the model expects around it. */
  encodePrompt(text: string): number[] {
    return this.#tokenizer.encode(text).ids;
  }

  decode(ids: readonly number[]): string {
    return ids.length === 0 ? '' : this.#tokenizer.decode([...ids], { skip_special_tokens: true });
  }

  /** Whether a token is none of the text, such as one that ends it: `decode` leaves it out. */
  isSpecial(id: number): boolean {
    return this.#special.has(id);
  }

  /**
   * A conversation as the text that the model was trained on, special tokens included: it goes to `encode`, since
   * `encodePrompt` would put them there once more.
   *
   * @throws MolaeError `UNSUPPORTED_CHECKPOINT` where the checkpoint has no chat template, or one that refuses the
   *   conversation or cannot be read.
   */
  applyChatTemplate(messages: readonly ChatMessage[]): string {
    if (this.#template === undefined) {
      throw new MolaeError(
        'UNSUPPORTED_CHECKPOINT',
        'The checkpoint has no chat template: give it a plain prompt',
      );
    }
    const special = (name: string) => {
      const value = this.#config[name];
      return typeof value === 'string' ? value : isJsonObject(value) ? value.content : undefined;
    };
    try {
      return new Template(this.#template).render({
        messages: [...messages],
        add_generation_prompt: true,
        bos_token: special('bos_token'),
        eos_token: special('eos_token'),
      });
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new MolaeError('UNSUPPORTED_CHECKPOINT', `The chat template does not take this: ${reason}`, {
        cause,
      });
    }
  }
}

async function readTemplate(path: string): Promise<string> {
  const bytes = await readSmallFile(path, MAX_BYTES);
  refuseLfsPointer(bytes, path);
  return new TextDecoder().decode(bytes);
}

/** A template as it is, or of several, each `{ name, template }`, the one called `default`. */
function chatTemplate(stored: unknown): string | undefined {
  if (!Array.isArray(stored)) return typeof stored === 'string' ? stored : undefined;
  const named = stored.filter(isJsonObject).find(({ name }) => name === 'default');
  return typeof named?.template === 'string' ? named.template : undefined;
}
