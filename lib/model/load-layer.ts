import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import type { DecoderSpec } from '../checkpoint/decoder-spec.ts';
import { loadMoeBlock, loadTensor } from '../checkpoint/load-experts.ts';
import type { Device } from '../device.ts';
import { DenseExperts } from '../experts.ts';
import type { Tensor } from '../tensor.ts';
import { DecoderLayer, type Projection } from './layer.ts';

/** Loads a decoder layer in the checkpoint's dtype, by the tensor names that all supported families share. */
export async function loadLayer(
  checkpoint: Checkpoint,
  spec: DecoderSpec,
  device: Device,
  index: number,
): Promise<DecoderLayer> {
  const loader = new LayerLoader(checkpoint, device, `model.layers.${index}`);
  try {
    const { queryKeyNorm } = spec.attention;
    const normed = queryKeyNorm !== 'none';
    return new DecoderLayer(index, {
      attentionNorm: await loader.tensor('input_layernorm.weight'),
      query: await loader.projection('self_attn.q_proj'),
      key: await loader.projection('self_attn.k_proj'),
      value: await loader.projection('self_attn.v_proj'),
      output: await loader.projection('self_attn.o_proj'),
      queryNorm: normed ? await loader.tensor('self_attn.q_norm.weight') : undefined,
      keyNorm: normed ? await loader.tensor('self_attn.k_norm.weight') : undefined,
      feedForwardNorm: await loader.tensor('post_attention_layernorm.weight'),
      feedForward: checkpoint.layers.has(index)
        ? await loadMoeBlock(checkpoint, index, { device })
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
