import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { inspectCheckpoint } from '../../lib/checkpoint/inspect.ts';
import { Model } from '../../lib/model/model.ts';
import { copyWithConfig } from '../support/changed-config.ts';
import { molaeError } from '../support/errors.ts';
import { fixture } from '../support/fixtures.ts';
import { outputFolder } from '../support/temporary.ts';

const folder = await outputFolder('shapes');

/** A copy of a family's checkpoint whose config says something else. */
async function changed(family: string, changes: object): Promise<string> {
  const copy = join(folder, `${family}-${Object.keys(changes)}`);
  await copyWithConfig(fixture(`families/${family}`), copy, changes);
  return copy;
}

describe.each(['memory', 'stream'])('a model that is opened to %s', (how) => {
  test.each([
    ['qwen2_moe', { vocab_size: 7 }, 'model.embed_tokens.weight'],
    ['qwen3_moe', { head_dim: 4 }, 'model.layers.0.self_attn.q_proj.weight'],
    ['olmoe', { num_key_value_heads: 1 }, 'model.layers.0.self_attn.k_proj.weight'],
    ['deepseek_v2', { v_head_dim: 2 }, 'model.layers.0.self_attn.kv_b_proj.weight'],
    ['deepseek_v3', { kv_lora_rank: 3 }, 'model.layers.0.self_attn.kv_a_proj_with_mqa.weight'],
  ])(
    'whose config of %s says %j is refused by the name of the tensor that has another shape',
    async (family, changes, tensor) => {
      const opened = Model.open(await changed(family, changes), { stream: how === 'stream' });
      await expect(opened).rejects.toMatchObject(
        molaeError('BAD_CHECKPOINT', tensor, 'config.json asks for'),
      );
    },
  );
});

test('inspect says that such a model does not run, and why', async () => {
  const found = await inspectCheckpoint(await changed('qwen3_moe', { head_dim: 4 }));
  expect(found).toMatchObject({
    supported: true,
    runs: false,
    cannotRun: expect.stringContaining('self_attn.q_proj.weight'),
  });
});
