import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import type {
  Attention,
  DecoderSpec,
  GroupedQueryAttention,
  LatentAttention,
} from '../checkpoint/decoder-spec.ts';
import { loadMoeBlock, loadTensor } from '../checkpoint/load-experts.ts';
import type { Device } from '../device.ts';
import type { BlockDType } from '../dtype.ts';
import { DenseExperts } from '../experts.ts';
import type { Tensor } from '../tensor.ts';
import { AttentionBlock, type Projection } from './attention.ts';
import { GroupedQueryHeads } from './grouped-query-attention.ts';
import { LatentHeads } from './latent-attention.ts';
import { DecoderLayer } from './layer.ts';

/**
 * Loads a decoder layer by the tensor names that all supported families share, in the checkpoint's dtype but for routed
 * experts that are to be quantized.
 */
export async function loadLayer(
  checkpoint: Checkpoint,
  spec: DecoderSpec,
  index: number,
  { device, quantize }: { readonly device: Device; readonly quantize?: BlockDType | undefined },
): Promise<DecoderLayer> {
  const loader = new LayerLoader(checkpoint, device, `model.layers.${index}`);
  try {
    return new DecoderLayer(index, {
      attentionNorm: await loader.tensor('input_layernorm.weight'),
      attention: await loader.attention(spec.attention),
      feedForwardNorm: await loader.tensor('post_attention_layernorm.weight'),
      feedForward: checkpoint.layers.has(index)
        ? await loadMoeBlock(checkpoint, index, { device, dtype: quantize })
        : await loader.denseFeedForward(checkpoint.spec.activation),
      owned: loader.made,
    });
  } catch (error) {
    for (const tensor of loader.made) tensor.dispose();
    throw error;
  }
}

class LayerLoader {
  readonly made: Tensor[] = [];
  readonly #checkpoint: Checkpoint;
  readonly #device: Device;
  readonly #prefix: string;

  constructor(checkpoint: Checkpoint, device: Device, prefix: string) {
    this.#checkpoint = checkpoint;
    this.#device = device;
    this.#prefix = prefix;
  }

  async tensor(name: string): Promise<Tensor> {
    const tensor = await loadTensor(this.#checkpoint, `${this.#prefix}.${name}`, this.#device);
    this.made.push(tensor);
    return tensor;
  }

  async projection(name: string): Promise<Projection> {
    const hasBias = this.#checkpoint.shards.tensors.has(`${this.#prefix}.${name}.bias`);
    return {
      weight: await this.tensor(`${name}.weight`),
      bias: hasBias ? await this.tensor(`${name}.bias`) : undefined,
    };
  }

  async attention(spec: Attention): Promise<AttentionBlock> {
    const kind = spec.kind === 'latent' ? await this.#latent(spec) : await this.#groupedQuery(spec);
    return new AttentionBlock(kind, await this.projection('self_attn.o_proj'));
  }

  async #groupedQuery({ queryKeyNorm }: GroupedQueryAttention): Promise<GroupedQueryHeads> {
    const normed = queryKeyNorm !== 'none';
    return new GroupedQueryHeads({
      query: await this.projection('self_attn.q_proj'),
      key: await this.projection('self_attn.k_proj'),
      value: await this.projection('self_attn.v_proj'),
      queryNorm: normed ? await this.tensor('self_attn.q_norm.weight') : undefined,
      keyNorm: normed ? await this.tensor('self_attn.k_norm.weight') : undefined,
    });
  }

  async #latent(spec: LatentAttention): Promise<LatentHeads> {
    const query =
      spec.queryLatentSize === undefined
        ? await this.projection('self_attn.q_proj')
        : {
            down: await this.projection('self_attn.q_a_proj'),
            norm: await this.tensor('self_attn.q_a_layernorm.weight'),
            up: await this.projection('self_attn.q_b_proj'),
          };
    const weights = {
      query,
      keyValueDown: await this.projection('self_attn.kv_a_proj_with_mqa'),
      keyValueNorm: await this.tensor('self_attn.kv_a_layernorm.weight'),
      keyValueUp: await this.tensor('self_attn.kv_b_proj.weight'),
    };
    return new LatentHeads(weights, spec);
  }

  /** A dense feed-forward network is a layer of one expert. */
  async denseFeedForward(activation: DenseExperts['activation']): Promise<DenseExperts> {
    const [gate, up, down] = [
      await this.tensor('mlp.gate_proj.weight'),
      await this.tensor('mlp.up_proj.weight'),
      await this.tensor('mlp.down_proj.weight'),
    ];
    return new DenseExperts({ gate: [gate], up: [up], down: [down], activation });
  }
}
